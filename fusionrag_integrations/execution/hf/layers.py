"""Some layers of a model, run as models that share its weights. The model itself isn't changed.

A model that begins in the middle is given states. They can't be given as embeddings, which some
families scale or add to before their first layer, or read again in each layer. So it is given the
tokens, and in the place of each layer below stands one that gives the argument `resumed`.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from transformers import PreTrainedModel


class PartialModels:
    """Models that have some of another's layers. Each is made once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._depth = len(model.base_model.layers)
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
        layers = list(base.layers[:last])
        base.layers = torch.nn.ModuleList([*map(_skipped, layers[:first]), *layers[first:]])
        return base


def _skipped(layer: Any) -> Any:
    """In the place of a layer below those that run; what a model looks up of it is there."""
    skipped = _shallow(layer)
    skipped.forward = _resumed
    return skipped


def _resumed(hidden_states: Any, *_: Any, resumed: torch.Tensor, **__: Any) -> torch.Tensor:
    return resumed


def _shallow(module: Any) -> Any:
    """A module on the same weights, whose own parts can be replaced.

    A `forward` that was set on the module itself, such as a compiled one, runs the module's own
    parts, so that of its class is used.
    """
    shallow = copy(module)
    vars(shallow).pop("forward", None)
    shallow._modules = dict(module._modules)
    return shallow
