"""A random share of the chunk tokens: the baseline that any other method must beat."""

from __future__ import annotations

import torch

from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.probe import Probe


def random(prompt: AssembledPrompt, probe: Probe) -> torch.Tensor:
    """Scores [C], reproducible: drawn from a generator that is seeded by the prompt."""
    generator = torch.Generator().manual_seed(hash(prompt.token_ids) % 2**63)
    return torch.rand(len(prompt.chunk_positions), generator=generator)
