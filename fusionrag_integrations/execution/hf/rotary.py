"""How a model's keys depend on where their token stands, layer by layer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property

import torch
from transformers import PreTrainedModel

from fusionrag_integrations.attention.rope import ApplyRotary, Rotation
from fusionrag_integrations.execution.hf.own_pass import own_pass

FAR = 97  # a position at which keys that are rotated differ from those at 0
SAME = 1e-3  # of a key's length: rounding


class Rotary:
    """A model's own rotary embedding, and which layers use it.

    Some families leave layers out (NoPE: SmolLM3, Cohere 2, EXAONE 4). Which ones is measured, not
    read from the configuration, where each family says it in its own way.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        base = model.base_model
        self._model = model
        self._embedding = base.rotary_emb
        self._apply: ApplyRotary = sys.modules[
            type(base.layers[0].self_attn).__module__
        ].apply_rotary_pos_emb
        # Families with a base for each type of layer (Gemma 3, OLMo 3) are asked by type.
        self._types: list[str] = (
            list(model.config.layer_types) if hasattr(self._embedding, "layer_types") else []
        )

    @cached_property
    def rotated(self) -> tuple[bool, ...]:
        """Whether each layer's keys depend on the position: measured on a token that is alone."""
        model, base = self._model, self._model.base_model
        same = torch.Generator().manual_seed(0)
        # Of states, since the embeddings of some tokens are 0.
        state = torch.randn(1, 1, model.config.hidden_size, generator=same).expand(2, -1, -1)
        states = state.to(model.device, model.dtype)
        with torch.inference_mode():
            _, kept, _ = own_pass(base, torch.tensor([[0], [FAR]]), inputs_embeds=states)
        here, far = zip(*(keys.float() for keys in kept), strict=True)
        return tuple(
            bool((one - other).norm() > SAME * one.norm())
            for one, other in zip(here, far, strict=True)
        )

    def rotation(self, positions: Sequence[int] | torch.Tensor) -> Rotation:
        """The rotation from position 0 to `positions` [T], on the model's device."""
        at = torch.as_tensor(positions, device=self._model.device)[None]
        by_type = {kind: self._of_type(at, kind) for kind in dict.fromkeys(self._types or [""])}
        of_layers = [by_type[kind] for kind in self._types or [""]]
        if not all(self.rotated):
            still = torch.ones_like(of_layers[0][0]), torch.zeros_like(of_layers[0][1])
            of_layers = [
                of_layers[layer % len(of_layers)] if turned else still
                for layer, turned in enumerate(self.rotated)
            ]
        cos, sin = (torch.cat(tables) for tables in zip(*of_layers, strict=True))
        return Rotation(cos, sin, self._apply)

    def _of_type(self, at: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Without the scaling of attention, which keys carry already."""
        wide = torch.empty(0, dtype=torch.float32, device=at.device)
        cos, sin = self._embedding(wide, at, *([kind] if kind else []))
        name = f"{kind}_attention_scaling" if kind else "attention_scaling"
        scaling = getattr(self._embedding, name)
        return cos / scaling, sin / scaling
