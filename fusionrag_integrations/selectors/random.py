"""A random share of the chunk tokens: the floor that any other method must beat."""

from __future__ import annotations

import torch

from fusionrag_integrations.types import AssembledPrompt, Probe


def random(prompt: AssembledPrompt, probe: Probe) -> torch.Tensor:
    """Scores [C], drawn from a generator seeded by the prompt: the same prompt, the same tokens."""
    generator = torch.Generator().manual_seed(hash(prompt.token_ids) % 2**63)
    return torch.rand(len(prompt.chunk_positions), generator=generator)
