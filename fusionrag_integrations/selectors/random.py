"""Recompute a random share: the floor that any other method must beat."""

from __future__ import annotations

import random
from dataclasses import dataclass

from fusionrag_integrations.types import AssembledPrompt, Probe, TokenSelection


@dataclass(frozen=True, slots=True)
class RandomSelector:
    """Selects floor(ratio x chunk tokens), drawn from a generator seeded by the prompt itself.

    The same prompt gets the same tokens, so that answers can be repeated.
    """

    ratio: float
    seed: int = 0

    def select(self, prompt: AssembledPrompt, probe: Probe) -> TokenSelection:
        positions = prompt.chunk_positions
        draw = random.Random(hash((self.seed, prompt.token_ids)))
        return TokenSelection(
            tuple(sorted(draw.sample(positions, int(self.ratio * len(positions)))))
        )
