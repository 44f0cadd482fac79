"""The FusionRAG paper's selection, exactly as published (arXiv 2601.12904, online stage).

The question's queries of the last layer score every chunk token: softmax of QK/sqrt(D) over the
tokens of each chunk by itself, summed over query tokens and heads.
"""

from __future__ import annotations

import torch

from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.attention_weights import logits
from fusionrag_integrations.selectors.probe import Probe


def fusionrag_paper(prompt: AssembledPrompt, probe: Probe) -> torch.Tensor:
    """Scores [C], float32."""
    (view,) = probe.suffix([probe.num_layers - 1])
    start, stop = prompt.question
    asked = (view.positions >= start) & (view.positions < stop)
    scores = logits(view)[:, asked]  # [Hq, Tq, N]
    return torch.cat(
        [
            torch.cat([scores[:, :, s.start : s.stop] for s in spans], dim=2).softmax(2).sum((0, 1))
            for spans in prompt.occurrences
        ]
    )
