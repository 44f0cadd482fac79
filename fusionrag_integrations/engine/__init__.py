"""`FusionEngine`: the object that a user creates.

engine.py       its operations
model_facts.py  what it answers about its model alone
parts.py        its parts, a model and a store, which are opened and closed together
"""

from fusionrag_integrations.engine.engine import FusionEngine
from fusionrag_integrations.engine.parts import DEFAULT_BUDGETS, DEFAULT_CHUNK_TOKENS

__all__ = ["DEFAULT_BUDGETS", "DEFAULT_CHUNK_TOKENS", "FusionEngine"]
