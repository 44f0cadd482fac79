"""The paper's selector (arXiv 2601.12904, online stage): last-layer query attention.

score(t) = sum over question tokens q and heads h of softmax_t'(q_h . k_h,t' / sqrt(D))[t],
with the softmax taken inside t's own chunk. The highest-scoring share of all chunk tokens is
recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusionrag_integrations.types import AssembledPrompt, Probe, TokenSelection


@dataclass(frozen=True, slots=True)
class FusionRAGSelector:
    """Selects floor(ratio x chunk tokens) by the question's attention in the last layer."""

    ratio: float = 0.15

    def select(self, prompt: AssembledPrompt, probe: Probe) -> TokenSelection:
        positions = prompt.chunk_positions
        budget = int(self.ratio * len(positions))
        if budget == 0:
            return TokenSelection(())
        if budget == len(positions):
            return TokenSelection(positions)
        best = self.scores(prompt, probe).topk(budget).indices.tolist()
        return TokenSelection(tuple(sorted(positions[i] for i in best)))

    def scores(self, prompt: AssembledPrompt, probe: Probe) -> torch.Tensor:
        """One score per chunk token, float32, in the order of `prompt.chunk_positions`."""
        last = probe.num_layers - 1
        queries = probe.question_queries(last).float()  # [Hq, Tq, D]
        keys = probe.placed_keys(last).float()  # [Hkv, N, D]
        groups = queries.shape[0] // keys.shape[0]
        # Head h reads key/value head h // groups: fold the group into the query axis.
        folded = queries.reshape(keys.shape[0], groups * queries.shape[1], queries.shape[2])
        logits = folded @ keys.transpose(1, 2) * probe.scaling(last)  # [Hkv, groups x Tq, N]
        return torch.cat(
            [
                torch.cat([logits[:, :, a:b] for a, b in runs], dim=2).softmax(2).sum((0, 1))
                for runs in _runs_by_chunk(prompt)
            ]
        )


def _runs_by_chunk(prompt: AssembledPrompt) -> list[list[tuple[int, int]]]:
    """Position bounds of each placed chunk's runs; boundary tokens can split one into several."""
    chunks: list[list[tuple[int, int]]] = []
    previous = None
    for span in prompt.spans:
        goes_on = (
            previous is not None
            and previous.record.chunk.id == span.record.chunk.id
            and previous.source_start + previous.length <= span.source_start
        )
        if goes_on:
            chunks[-1].append((span.start, span.stop))
        else:
            chunks.append([(span.start, span.stop)])
        previous = span
    return chunks
