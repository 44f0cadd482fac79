"""The same names as in `fusionrag_integrations.store`, where they are defined."""

from fusionrag_integrations.store.repair import repair
from fusionrag_integrations.store.verify import Problem, find_damage

__all__ = ["Problem", "find_damage", "repair"]
