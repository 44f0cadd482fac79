"""The same names as in `fusionrag_integrations.ingest.neighbours`, where they are defined."""

from fusionrag_integrations.ingest.neighbours import (
    Candidates,
    NeighbourPolicy,
    Neighbours,
)

__all__ = ["Candidates", "NeighbourPolicy", "Neighbours"]
