"""What most methods share: score every chunk token, recompute the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fusionrag_integrations.types import (
    AssembledPrompt,
    Probe,
    Span,
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


def occurrences(prompt: AssembledPrompt) -> list[list[Span]]:
    """The spans of each placed chunk; boundary tokens can split one into several."""
    chunks: list[list[Span]] = []
    previous = None
    for span in prompt.spans:
        goes_on = (
            previous is not None
            and previous.record.chunk.id == span.record.chunk.id
            and previous.source_start + previous.length <= span.source_start
        )
        if goes_on:
            chunks[-1].append(span)
        else:
            chunks.append([span])
        previous = span
    return chunks
