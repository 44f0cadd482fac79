"""Some layers of a model, run as models that share its weights. The model itself isn't changed."""

from __future__ import annotations

from copy import copy, deepcopy
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel


class PartialModels:
    """Models that have some of another's layers. Each is made once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._depth = len(model.base_model.layers)
        self._kinds: list[str] = list(getattr(model.config, "layer_types", None) or ())
        self._middles: dict[tuple[int, int], Any] = {}
        self._uppers: dict[int, Any] = {}

    def between(self, first: int, last: int) -> Any:
        """The base model's layers [first, last), without the norm behind the last."""
        if (first, last) not in self._middles:
            base = self._layers(first, last)
            base.norm = torch.nn.Identity()
            self._middles[first, last] = base
        return self._middles[first, last]

    def above(self, depth: int) -> Any:
        """The model from layer `depth` on, up to its logits."""
        if depth not in self._uppers:
            whole = _shallow(self._model)
            setattr(whole, whole.base_model_prefix, self._layers(depth, self._depth))
            self._uppers[depth] = whole
        return self._uppers[depth]

    @cached_property
    def last_kv(self) -> Any:
        """The last layer as far as its keys and values: without its MLP."""
        base = self._layers(self._depth - 1, self._depth)
        base.norm = torch.nn.Identity()
        layer = _shallow(base.layers[0])
        layer.mlp = torch.nn.Identity()
        base.layers = torch.nn.ModuleList([layer])
        return base

    def _layers(self, first: int, last: int) -> Any:
        """The base model with only the layers [first, last)."""
        base = _shallow(self._model.base_model)
        base.layers = torch.nn.ModuleList(base.layers[first:last])
        base.config = deepcopy(base.config)
        base.config.num_hidden_layers = last - first
        if self._kinds:  # transformers looks up a layer's kind by its index in the list
            base.config.layer_types = self._kinds[first:last]
        return base


def _shallow(module: Any) -> Any:
    """A module on the same weights, whose own parts can be replaced."""
    shallow = copy(module)
    shallow._modules = dict(module._modules)
    return shallow
