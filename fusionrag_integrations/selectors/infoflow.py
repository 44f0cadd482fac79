"""InfoFlow KV's selection (arXiv 2603.05353): the suffix's attention in a few middle layers.

Softmax over the whole prompt, mean over heads, L2 norm over the suffix's tokens, mean over layers
between 45% and 75% of the depth.
"""

from __future__ import annotations

import torch

from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.fusionrag import attention
from fusionrag_integrations.selectors.probe import Layered, Probe

DEPTHS = (0.45, 0.75)
LAYERS = 4


def infoflow(prompt: AssembledPrompt, probe: Probe) -> torch.Tensor:
    """Scores [C], float32."""
    return attention(prompt, probe.suffix(middle_layers(probe))).mean(0)


def middle_layers(model: Layered) -> tuple[int, ...]:
    """At most `LAYERS` layers between `DEPTHS`, evenly spread, preferably of `global_layers`."""
    low, high = (depth * model.num_layers for depth in DEPTHS)
    for layers in (model.global_layers, range(model.num_layers)):
        middle = [layer for layer in layers if low <= layer <= high]
        if middle:
            steps = min(LAYERS, len(middle))
            spacing = (len(middle) - 1) / max(1, steps - 1)
            return tuple(middle[round(i * spacing)] for i in range(steps))
    return (model.num_layers - 1,)
