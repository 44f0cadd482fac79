"""What most methods share: score every chunk token, recompute the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fusionrag_integrations.types import (
    AssembledPrompt,
    Probe,
    TokenSelection,
)

Scorer = Callable[[AssembledPrompt, Probe], torch.Tensor]
"""Gives a score a chunk token, [C], in the order of `chunk_positions`; higher is more wanted."""


@dataclass(frozen=True, slots=True)
class TopScores:
    """Selects the floor(ratio x chunk tokens) tokens with the highest scores."""

    ratio: float
    scorer: Scorer

    def select(self, prompt: AssembledPrompt, probe: Probe) -> TokenSelection:
        """Asks for scores only where they decide something: not at ratios 0 and 1."""
        positions = prompt.chunk_positions
        budget = int(self.ratio * len(positions))
        if budget == 0:
            return TokenSelection(())
        if budget == len(positions):
            return TokenSelection(positions)
        best = self.scorer(prompt, probe).topk(budget).indices.tolist()
        return TokenSelection(tuple(sorted(positions[i] for i in best)))
