"""Some layers of a model, run as models that share its weights. The model itself isn't changed.

A model that begins in the middle is given states as embeddings, which some families scale or add
to before their first layer. So its first layer takes them from the argument `resumed` instead.
"""

from __future__ import annotations

from copy import copy, deepcopy
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

    def _layers(self, first: int, last: int) -> Any:
        """The base model with only the layers [first, last)."""
        base = _shallow(self._model.base_model)
        layers = list(base.layers[first:last])
        if first:
            layers[:1] = [_resumed(layers[0]) if layers else _Resumed()]
        base.layers = torch.nn.ModuleList(layers)
        base.config = deepcopy(base.config)
        base.config.num_hidden_layers = len(layers)
        if self._kinds:  # transformers looks up a layer's kind by its index in the list
            base.config.layer_types = self._kinds[first:last] or self._kinds[-1:]
        return base


class _Resumed(torch.nn.Module):
    """In the place of a layer, where there is none."""

    def forward(self, hidden_states: Any, *_: Any, resumed: torch.Tensor, **__: Any) -> Any:
        return resumed


def _resumed(layer: Any) -> Any:
    """A layer that begins from given states."""

    def forward(hidden_states: Any, *args: Any, resumed: torch.Tensor, **kwargs: Any) -> Any:
        return layer.forward(resumed, *args, **kwargs)

    beginning = _shallow(layer)
    beginning.forward = forward
    return beginning


def _shallow(module: Any) -> Any:
    """A module on the same weights, whose own parts can be replaced.

    A `forward` that was set on the module itself, such as a compiled one, runs the module's own
    parts, so that of its class is used.
    """
    shallow = copy(module)
    vars(shallow).pop("forward", None)
    shallow._modules = dict(module._modules)
    return shallow
