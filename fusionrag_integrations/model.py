"""The same names as in `fusionrag_integrations.execution.hf.model`, where they are defined."""

from fusionrag_integrations.execution.hf.model import (
    CausalModel,
)

__all__ = ["CausalModel"]
