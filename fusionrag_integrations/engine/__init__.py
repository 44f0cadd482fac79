"""`FusionEngine`: the object that a user creates.

engine.py     it opens, ingests, deletes, checks and closes
answering.py  what it does with prompts
facts.py      what it tells of its model and its store
parts.py      its parts, a model and a store, which are opened and closed together
"""

from fusionrag_integrations.engine.engine import FusionEngine
from fusionrag_integrations.engine.parts import DEFAULT_BUDGETS
from fusionrag_integrations.ingest.model_facts import DEFAULT_CHUNK_TOKENS

__all__ = ["DEFAULT_BUDGETS", "DEFAULT_CHUNK_TOKENS", "FusionEngine"]
