"""How a model's keys are moved to another position, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from transformers import PreTrainedModel

from fusionrag_integrations.attention.rope import ApplyRotary, Rotation
from fusionrag_integrations.execution.hf.kv_layout import KVShape, widened
from fusionrag_integrations.execution.hf.supported import rotary_function


class Rotary:
    """A model's own rotary embedding, for its KV as it is kept."""

    def __init__(self, model: PreTrainedModel, shape: KVShape) -> None:
        base = model.base_model
        self._model = model
        self._shape = shape
        self._embedding = base.rotary_emb
        self._apply = _as_pair(rotary_function(base.layers[0].self_attn))
        if shape.front < shape.size:
            self._apply = _of_the_front(self._apply, shape.front)
        # Families with a base for each type of layer (Gemma 3, OLMo 3) are asked by type.
        self._types: list[str] = (
            [model.config.layer_types[shape.sources.index(layer)] for layer in range(shape.layers)]
            if hasattr(self._embedding, "layer_types")
            else []
        )

    def rotation(self, positions: Sequence[int] | torch.Tensor) -> Rotation:
        """The rotation from position 0 to `positions` [T], on the model's device."""
        at = torch.as_tensor(positions, device=self._model.device)[None]
        by_type = {kind: self._of_type(at, kind) for kind in dict.fromkeys(self._types or [""])}
        size = max(cos.shape[-1] for cos, _ in by_type.values())
        by_type = {
            kind: (widened(cos, size, fill=1.0), widened(sin, size))
            for kind, (cos, sin) in by_type.items()
        }
        of_layers = [by_type[kind] for kind in self._types or [""]]
        if not all(self._shape.rotated):
            still = torch.ones_like(of_layers[0][0]), torch.zeros_like(of_layers[0][1])
            of_layers = [
                of_layers[layer % len(of_layers)] if turned else still
                for layer, turned in enumerate(self._shape.rotated)
            ]
        cos, sin = (torch.cat(tables) for tables in zip(*of_layers, strict=True))
        return Rotation(cos, sin, self._apply)

    def _of_type(self, at: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Without the scaling of attention, which keys carry already."""
        wide = torch.empty(0, dtype=torch.float32, device=at.device)
        tables = self._embedding(wide, at, *([kind] if kind else []))
        cos, sin = (tables.real, tables.imag) if isinstance(tables, torch.Tensor) else tables
        name = f"{kind}_attention_scaling" if kind else "attention_scaling"
        scaling = getattr(self._embedding, name)
        return cos / scaling, sin / scaling


def _as_pair(function: Any) -> ApplyRotary:
    """A family's function, as most have it: of queries and keys, by cos and sin."""
    given = list(signature(function).parameters)
    if "freqs_cis" in given:  # DeepSeek V2's, by complex numbers

        def by_complex(
            queries: torch.Tensor, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            # It takes no queries of no head, and keys only where pairs of numbers are aligned.
            keys = keys.clone(memory_format=torch.contiguous_format)
            return queries, function(keys[:, :1], keys, torch.complex(cos, sin))[1]

        return by_complex
    if given[1] == "cos":  # Gemma 4's, of one or the other

        def of_keys(
            queries: torch.Tensor, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return queries, function(keys, cos, sin)

        return of_keys
    apply: ApplyRotary = function
    return apply


def _of_the_front(apply: ApplyRotary, size: int) -> ApplyRotary:
    """The same function, told of the first `size` of a key's numbers only."""

    def of_the_front(
        queries: torch.Tensor, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        front, rest = keys[..., :size], keys[..., size:]
        queries, rotated = apply(queries[..., :size], front, cos, sin)
        return queries, torch.cat([rotated, rest], dim=-1)

    return of_the_front
