"""Our own selection: relevance to the question, over all layers, times staleness of the chunk.

The whole suffix runs over the placed KV at its true positions. A token's relevance is the attention
that it gets: softmax over the whole prompt, mean over heads, L2 norm over the suffix's tokens, as
in InfoFlow KV (arXiv 2603.05353), but mean over all layers that see the whole prompt, as in
ProphetKV (arXiv 2602.02579), with equal weight for each layer.

A chunk's KV was computed behind other text than precedes it now. If both are on its subject, this
changes little; if the prompt changes the subject, much. Two tokens of each chunk run with the
suffix to measure it: relevance is multiplied by the deviation of their placed KV.

A calibration, measured on questions about the user's own chunks, may
- use fewer layers;
- let relevance count for the whole sentence, since a question seldom attends to the token where a
  reference is resolved, but mostly to another of its sentence;
- weight relevance by sensitivity, which ingest has measured for each token: how far its KV moved
  when it was fused. A token that no context changes need not be recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import mean

import torch

from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.attention_weights import weights
from fusionrag_integrations.selectors.probe import LayerView, Probe
from fusionrag_integrations.selectors.sentences import sentence_numbers
from fusionrag_integrations.store.calibration import Calibration

SAMPLED = (0, 3)  # tokens of each chunk: its first ones depend most on what precedes it
TINY = 1e-30  # a layer's relevance where its window reaches no chunk


@dataclass(frozen=True, slots=True)
class FusionRAGScorer:
    """Scores tokens as `calibration` says.

    Without one, by their relevance in the layers that see the whole prompt, times their chunk's
    staleness.
    """

    calibration: Calibration | None = None

    def __call__(self, prompt: AssembledPrompt, probe: Probe) -> torch.Tensor:
        """Scores [C], float32."""
        calibration = self.calibration or Calibration(layers=_seeing_all(probe))
        chunks = prompt.positions_by_chunk
        sampled = [[chunk[place] for place in SAMPLED if place < len(chunk)] for chunk in chunks]
        views, deviations = probe.watched_suffix(
            calibration.layers, [p for chunk in sampled for p in chunk]
        )
        scores = relevance(prompt, views)
        if calibration.whole_sentences:
            scores = spread(scores, sentence_numbers(prompt).to(scores.device))
        if calibration.sensitivity:
            scores = scores * sensitivity(prompt).to(scores.device) ** calibration.sensitivity
        if len(deviations) == 1:  # layer 0 alone, whose KV depends on no context
            return scores
        by_token = iter(deviations[1:].mean(0).tolist())
        by_chunk = torch.tensor([mean(islice(by_token, len(chunk))) for chunk in sampled]).float()
        staleness = by_chunk.repeat_interleave(torch.tensor([len(chunk) for chunk in chunks]))
        return scores * staleness.to(scores.device)


def _seeing_all(probe: Probe) -> tuple[int, ...]:
    """The layers that see the whole prompt; all, where each has a window."""
    return probe.global_layers or tuple(range(probe.num_layers))


def relevance(prompt: AssembledPrompt, views: Sequence[LayerView]) -> torch.Tensor:
    """Each chunk token's share of its layer's attention, mean over layers, float32 [C]."""
    by_layer = attention(prompt, views)
    return (by_layer / by_layer.sum(1, keepdim=True).clamp(min=TINY)).mean(0)


def attention(prompt: AssembledPrompt, views: Sequence[LayerView]) -> torch.Tensor:
    """The attention that each chunk token gets from the suffix in each layer, float32 [L, C]."""
    positions = torch.tensor(prompt.chunk_positions, device=views[0].keys.device)
    of_layers = (weights(view).mean(0)[:, positions] for view in views)
    # A quarter of the time that PyTorch's norm takes over rows.
    return torch.stack([shares.square_().sum(0).sqrt_() for shares in of_layers])


def spread(scores: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """The highest score of each token's group, [C]. groups: numbers from 0, int64 [C]."""
    best = scores.new_zeros(int(groups.max()) + 1)
    return best.scatter_reduce(0, groups, scores, "amax")[groups]


def sensitivity(prompt: AssembledPrompt) -> torch.Tensor:
    """How far fusing moved each token's KV, float32 [C]; the mean for chunks without a trace."""
    by_chunk = [
        span.record.trace.sensitivity[span.source_start : span.source_start + span.length]
        if span.record.trace
        else (torch.nan,) * span.length
        for span in prompt.spans
    ]
    values = torch.tensor([value for chunk in by_chunk for value in chunk])
    return values.nan_to_num(float(values.nanmean().nan_to_num(1.0)))
