"""CacheBlend's selection (arXiv 2405.16444): the tokens whose true KV is far from the placed KV.

Layers 0 and 1 run over the whole prompt; the squared differences of K and V at layer 1 are the
scores, and the selected tokens go on from there.
"""

from __future__ import annotations

import torch

from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.probe import Probe


def cacheblend(prompt: AssembledPrompt, probe: Probe) -> torch.Tensor:
    """Scores [C], float32."""
    return probe.early_deviation()
