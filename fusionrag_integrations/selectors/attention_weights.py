"""Attention weights, from the queries and keys of a layer."""

from __future__ import annotations

import torch

from fusionrag_integrations.attention.rows import visible
from fusionrag_integrations.selectors.probe import LayerView


def logits(view: LayerView) -> torch.Tensor:
    """The inputs of the layer's softmax, unmasked; float32 [Hq, R, N]."""
    queries, keys = view.queries.float() * view.scaling, view.keys.float()
    heads, rows, size = queries.shape
    # Head h reads key/value head h // groups: fold the group into the query axis.
    folded = queries.reshape(keys.shape[0], -1, size)
    return view.spec.capped(folded @ keys.transpose(1, 2)).view(heads, rows, -1)


def weights(view: LayerView) -> torch.Tensor:
    """The layer's attention weights, over the keys that each row sees; float32 [Hq, R, N]."""
    seen = visible(view.positions, view.keys.shape[1], view.window)
    return view.spec.softmax(logits(view).masked_fill_(~seen, -torch.inf))
