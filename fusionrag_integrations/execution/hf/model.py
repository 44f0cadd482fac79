"""A model whose keys and values can be moved to other positions, and computed in part."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from transformers import PreTrainedModel

from fusionrag_integrations.attention.attend import attends_in_triton
from fusionrag_integrations.attention.rope import Rotation
from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.execution.hf.generation import Generation, likeliest_tokens
from fusionrag_integrations.execution.hf.kv_layout import kv_layout
from fusionrag_integrations.execution.hf.peft_adapters import adapter_state
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.execution.hf.rotary import Rotary
from fusionrag_integrations.execution.hf.rows_pass import ATTENTION, register
from fusionrag_integrations.execution.hf.supported import (
    refuse_other_structure,
    refuse_unsupported,
)

# By how much numbers may differ that a model computes in two ways, relative to their size: several
# times the rounding error in models of 8 to 30 layers (2e-6, 2e-3 and 2e-2), which adds up over
# them. Where activations are quantised, the least difference may move one to the next step.
ROUNDING = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
LAYERS = 30
OF_QUANTISED = 1e-1


class CausalModel(PlainModel):
    """A model whose KV can be moved and recomputed in part. What runs it is an `Executor`.

    Its attention is this package's, which computes what the model's own did wherever the model is
    called by others. global_layers: those whose attention reaches the whole prompt, not only a
    window of it. window: how many keys the others' rows see. layout: how KV is kept; kv_layers,
    num_kv_heads, head_dim: its shape. last_written: the last layer that keeps KV of its own.
    graph_lock: held while a CUDA graph is recorded, for which the device must be quiet.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, source: str) -> None:
        self.check_config(model.config)
        refuse_other_structure(model)
        super().__init__(model, tokenizer, source)
        self.num_layers = len(model.base_model.layers)
        self.num_heads = int(model.config.num_attention_heads)
        self.window: int | None = getattr(model.config, "sliding_window", None) or None
        kinds: list[str] = list(getattr(model.config, "layer_types", None) or ()) or [
            "full_attention" if self.window is None else "sliding_attention"
        ]
        self.global_layers = tuple(
            i for i in range(self.num_layers) if kinds[i % len(kinds)] == "full_attention"
        )
        self.graph_lock = Lock()
        self._attention_before = str(model.config._attn_implementation)
        register()
        model.set_attn_implementation(ATTENTION)
        try:
            self.layout = kv_layout(model)
        except Exception:
            self.give_back()
            raise
        # Behind a first pass, which unpacks what some quantisations have packed.
        self._adapters, self._weights = adapter_state(model), _weights(model)
        shape = self.layout.shape
        self.kv_layers, self.num_kv_heads, self.head_dim = shape.layers, shape.heads, shape.size
        self.last_written = shape.sources.index(shape.layers - 1)
        self._rotary = Rotary(model, shape)

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raises `UnsupportedModelError`, naming the reason, where KV couldn't be moved."""
        refuse_unsupported(config)

    def give_back(self) -> None:
        """Make the model as it was found. Nothing of this can be used any more."""
        self.hf.set_attn_implementation(self._attention_before)
        super().give_back()

    def in_child(self) -> None:
        """In a forked child: a thread of the parent may hold the lock."""
        self.graph_lock = Lock()
        super().in_child()

    @property
    def kv_bytes(self) -> int:
        """Of a token's keys and values in all layers."""
        return 2 * self.kv_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def rounding(self) -> float:
        """By how much its numbers may differ that are computed in two ways, relative to them."""
        plain = str(self.dtype).removeprefix("torch.")
        of_few = ROUNDING[self.dtype] if self.weights == plain else OF_QUANTISED
        return of_few * max(1.0, self.num_layers / LAYERS)

    @property
    def keys_of_a_row(self) -> float:
        """How many keys a row attends to at the cost of all else that is computed of it."""
        weights = sum(int(weight.numel()) for weight in self.hf.base_model.layers.parameters())
        return weights / (2 * self.num_layers * self.num_heads * self.head_dim)

    @cached_property
    def repeats_steps(self) -> bool:
        """Whether a step of decode does the same on tensors that stay where they are, so that it
        can be a CUDA graph: on one GPU, by kernels that know the heads' size.
        """
        devices = {weight.device for weight in self.hf.parameters()}
        in_kernels = attends_in_triton(self.device, self.head_dim)
        return in_kernels and len(devices) == 1 and not self.layout.expands

    @cached_property
    def kv_stream(self) -> torch.cuda.Stream | None:
        """The stream that KV moves on, one for all requests: a stream has memory of its own."""
        if self.device.type != "cuda":
            return None
        stream: torch.cuda.Stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return stream

    def check_usable(self) -> None:
        """Raises `StoreError` in a child that was forked with this model on a GPU, and once other
        weights or adapters act in it than when this was made, or another attention. A change that
        PyTorch doesn't count, of a weight's `.data`, isn't noticed.
        """
        super().check_usable()
        if self.hf.config._attn_implementation != ATTENTION:
            raise StoreError(
                f"The attention of {self.name} was changed to "
                f"{self.hf.config._attn_implementation!r}, which knows no stored KV. Set it back: "
                f"model.set_attn_implementation({ATTENTION!r})."
            )
        if adapter_state(self.hf) != self._adapters or not self._weights <= _weights(self.hf):
            raise StoreError(
                f"The weights or adapters of {self.name} were changed, and KV belongs to those "
                "that it had. Make an engine for the model as it is now, with a store of its own; "
                "adapters can also be set back."
            )

    def likeliest(self, max_tokens: int) -> Generation:
        """Greedy decoding by the model's logits as they are, up to its end tokens."""
        return likeliest_tokens(self.hf, max_tokens)

    def rotation(self, positions: Sequence[int] | torch.Tensor) -> Rotation:
        """The rotation from position 0 to `positions` [T], for all layers, on `device`."""
        return self._rotary.rotation(positions)

    def read_kv(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as they are kept, [Hkv, N, D], as a layer's attention reads them."""
        return self.layout.read(self.hf.base_model.layers[layer].self_attn, keys, values)


def _weights(model: PreTrainedModel) -> frozenset[Hashable]:
    """Each with how often it was changed in place, which PyTorch counts."""
    tensors = (*model.parameters(), *model.buffers())
    return frozenset(
        (id(one), one.dtype, 0 if one.is_inference() else one._version) for one in tensors
    )
