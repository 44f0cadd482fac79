"""The same names as in `fusionrag_integrations.execution.hf`, where they are defined."""

from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.hf.plain_model import PlainModel

__all__ = ["CausalModel", "PlainModel"]
