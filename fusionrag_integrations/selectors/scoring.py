"""What most methods share: score every chunk token, recompute the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.probe import Probe
from fusionrag_integrations.selectors.selection import TokenSelection

Scorer = Callable[[AssembledPrompt, Probe], torch.Tensor]
"""Gives each chunk token a score, [C], in the order of `chunk_positions`; highest are selected."""


@dataclass(frozen=True, slots=True)
class TopScores:
    """Selects the floor(ratio x chunk tokens) tokens with the highest scores."""

    ratio: float
    scorer: Scorer

    def select(self, prompt: AssembledPrompt, probe: Probe) -> TokenSelection:
        """Computes scores only if they are needed: not at ratios 0 and 1."""
        positions = prompt.chunk_positions
        budget = int(self.ratio * len(positions))
        if budget == 0:
            return TokenSelection(())
        if budget == len(positions):
            return TokenSelection(positions)
        best = self.scorer(prompt, probe).topk(budget).indices.tolist()
        return TokenSelection(tuple(sorted(positions[i] for i in best)))
