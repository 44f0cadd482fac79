"""EPIC's selection, LegoLink-k (arXiv 2410.15332): the first k tokens of each chunk.

k follows from the ratio; the rest of the budget goes to the next token of the first chunks.
"""

from __future__ import annotations

import torch

from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.probe import Probe


def epic(prompt: AssembledPrompt, probe: Probe) -> torch.Tensor:
    """Scores [C], float64: each token's place in its chunk decides, then the prompt's order."""
    places = [place for chunk in prompt.positions_by_chunk for place, _ in enumerate(chunk)]
    place = torch.tensor(places, dtype=torch.float64)
    return -place - torch.arange(len(place)) / (len(place) + 1)
