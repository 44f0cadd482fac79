"""The model's own prefill, with what all its layers hand to their cache."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


def own_pass(
    model: PreTrainedModel, positions: torch.Tensor, **inputs: Any
) -> tuple[Any, list[torch.Tensor | None], list[torch.Tensor | None]]:
    """Run a model over whole sequences.

    positions: int64 [B, T]. inputs: token ids, and more for the model. Returns its output, and keys
    and values by layer, [B, H, T, *], of windowed layers, too, as a whole; None of layers that hand
    over none.
    """
    layers = [DynamicLayer() for _ in range(model.config.num_hidden_layers)]
    output = model(
        position_ids=positions.to(model.device),
        past_key_values=Cache(layers=layers),
        use_cache=True,
        **inputs,
    )
    return output, [layer.keys for layer in layers], [layer.values for layer in layers]
