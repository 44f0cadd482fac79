"""How a model's KV is kept: of all layers in one shape, whatever each hands to its cache.

Most models have keys and values of the same heads in every layer, kept as they are. Others:

- Heads of several sizes (Gemma 4): narrower ones are widened by zeros, fewer ones are repeated.
- Layers that attend to the KV of an earlier one (Gemma 4): nothing is kept of them.
- Latent attention (DeepSeek V2, arXiv 2405.04434): a layer hands over a latent, which doesn't
  depend on the position, and one rotated key. Keys and values of all heads are made from the two
  whenever they are read. The two are kept as one vector in two halves, the rotated key in front.

Axes: L layers that keep KV, H heads, R rows, N positions, D the size of a head as it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Protocol

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.errors import FusionRAGError, UnsupportedModelError
from fusionrag_integrations.execution.hf.own_pass import own_pass
from fusionrag_integrations.execution.hf.rows_batches import RowsBatches
from fusionrag_integrations.execution.hf.supported import IN_FULL

FAR = 97  # a position at which keys that are rotated differ from those at 0
SAME = 1e-3  # of a key's length: rounding
TOKENS = 4  # that are tried, each alone: the embedding of one may be 0

KV = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class KVShape:
    """What is kept of a token.

    layers, heads, size: L, H and D. front: how many of a key's first numbers the model's rotation
    is told of; those behind depend on no position. sources: for each of the model's layers, which
    of the L it attends to. rotated: whether the keys of each of the L depend on the position; some
    families leave layers out (NoPE: SmolLM3, Cohere 2, EXAONE 4).
    """

    layers: int
    heads: int
    size: int
    front: int
    sources: tuple[int, ...]
    rotated: tuple[bool, ...]

    @property
    def shared(self) -> bool:
        """Whether layers attend to the KV of others."""
        return self.layers < len(self.sources)


class KVLayout(Protocol):
    """How it is made of what a layer hands to its cache, and attended to."""

    @property
    def shape(self) -> KVShape: ...

    expands: ClassVar[bool]
    """Whether keys and values are made anew whenever they are read."""

    def keep(self, keys: torch.Tensor, values: torch.Tensor) -> KV:
        """What a layer hands to its cache, [..., R, *], as it is kept, [..., H, R, D]."""
        ...

    def queries(self, module: Any, queries: torch.Tensor) -> torch.Tensor:
        """Rotated queries [Hq, R, *] of the attention `module`, as they are compared with keys that
        are read.
        """
        ...

    def read(self, module: Any, keys: torch.Tensor, values: torch.Tensor) -> KV:
        """What is kept, [H, N, D], as `module` attends to it."""
        ...

    def attend(
        self, module: Any, queries: torch.Tensor, batches: RowsBatches, spec: AttentionSpec
    ) -> torch.Tensor:
        """What all rows attend to, [Hq, R, *]. queries: as `queries` makes them."""
        ...


@dataclass(frozen=True, slots=True)
class PerHead:
    """Keys and values by head. value_sizes: of a head's values in each of the L, as they were."""

    shape: KVShape
    value_sizes: tuple[int, ...]
    expands: ClassVar[bool] = False

    def keep(self, keys: torch.Tensor, values: torch.Tensor) -> KV:
        return self._kept(keys), self._kept(values)

    def queries(self, module: Any, queries: torch.Tensor) -> torch.Tensor:
        return widened(queries, self.shape.size)

    def read(self, module: Any, keys: torch.Tensor, values: torch.Tensor) -> KV:
        return keys, values

    def attend(
        self, module: Any, queries: torch.Tensor, batches: RowsBatches, spec: AttentionSpec
    ) -> torch.Tensor:
        layer = self.shape.sources[module.layer_idx]
        return narrowed(batches.attend(layer, queries, spec), self.value_sizes[layer])

    def _kept(self, states: torch.Tensor) -> torch.Tensor:
        if (repeats := self.shape.heads // states.shape[-3]) > 1:
            states = states.repeat_interleave(repeats, dim=-3)
        return widened(states, self.shape.size)


@dataclass(frozen=True, slots=True)
class Latent:
    """A latent of this size behind a rotated key, from which keys and values by head are made."""

    shape: KVShape
    latent: int
    expands: ClassVar[bool] = True

    def keep(self, keys: torch.Tensor, values: torch.Tensor) -> KV:
        """The latent is handed over as keys, the rotated key as values."""
        first, second = torch.cat([values, keys], dim=-1).chunk(2, dim=-1)
        return first, second

    def queries(self, module: Any, queries: torch.Tensor) -> torch.Tensor:
        return pad(queries, (0, _size(module) - queries.shape[-1]))

    def read(self, module: Any, keys: torch.Tensor, values: torch.Tensor) -> KV:
        weight = next(chain(module.kv_b_proj.parameters(), module.kv_b_proj.buffers()))
        both = torch.cat([keys, values], dim=-1)[None].to(weight.device)
        key, latent = torch.split(both, [self.shape.front, self.latent], dim=-1)
        of_keys, of_values = (
            pad(one[0], (0, _size(module) - one.shape[-1])).to(keys.device)
            for one in module.expand_kv(latent, key)
        )
        return of_keys, of_values

    def attend(
        self, module: Any, queries: torch.Tensor, batches: RowsBatches, spec: AttentionSpec
    ) -> torch.Tensor:
        layer = self.shape.sources[module.layer_idx]
        attended = batches.attend_to_read(layer, queries, spec, partial(self.read, module))
        return attended[..., : module.v_head_dim]


def _size(module: Any) -> int:
    """Of keys, and of values made as large."""
    return max(int(module.qk_head_dim), int(module.v_head_dim))


def widened(states: torch.Tensor, size: int, fill: float = 0.0) -> torch.Tensor:
    """Heads [..., d] with zeros behind each half, [..., size]: rotations pair the two halves."""
    narrow = states.shape[-1]
    if narrow == size:
        return states
    halves = states.reshape(*states.shape[:-1], 2, narrow // 2)
    return pad(halves, (0, (size - narrow) // 2), value=fill).flatten(-2)


def narrowed(states: torch.Tensor, size: int) -> torch.Tensor:
    """Widened heads without the zeros, [..., size]."""
    wide = states.shape[-1]
    if wide == size:
        return states
    halves = states.reshape(*states.shape[:-1], 2, wide // 2)
    return halves[..., : size // 2].flatten(-2)


@torch.inference_mode()
def kv_layout(model: PreTrainedModel) -> KVLayout:
    """The layout of a model's KV, which isn't read from the configuration, where each family says
    it in its own way, but seen: a few tokens are computed, each alone, at two positions.

    Raises `UnsupportedModelError` for KV that has no such layout.
    """
    spread = [number * (model.config.vocab_size - 1) // (TOKENS - 1) for number in range(TOKENS)]
    ids = torch.tensor(spread * 2)[:, None]
    positions = torch.tensor([0, FAR]).repeat_interleave(TOKENS)[:, None]
    try:
        _, *kv = own_pass(model, positions, input_ids=ids.to(model.device))
    except (FusionRAGError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of a type that nobody has tried anything may fail
        raise UnsupportedModelError(
            f"This {model.config.model_type} model is not supported: to compute a few tokens ended "
            f"with {type(error).__name__}: {error}. {IN_FULL}"
        ) from error
    sources = _sources(model, [keys is not None for keys in kv[0]])
    kept = [layer for layer in zip(*kv, strict=True) if layer[0] is not None]
    latent = all(hasattr(layer.self_attn, "expand_kv") for layer in model.base_model.layers)
    rotated = tuple(_depends_on_position(layer[1 if latent else 0]) for layer in kept)
    if latent:
        latents, keys = kept[0]
        latent_size, key_size = latents.shape[3], keys.shape[3]
        half = (latent_size + key_size) // 2
        shape = KVShape(len(kept), 1, half, key_size, sources, rotated)
        return Latent(shape, latent_size)
    heads = max(states.shape[1] for layer in kept for states in layer)
    size = max(states.shape[3] for layer in kept for states in layer)
    for number, (keys, values) in enumerate(kept):
        if keys.shape[1] != values.shape[1] or heads % keys.shape[1]:
            raise UnsupportedModelError(
                f"This {model.config.model_type} model is not supported: layer {number} has "
                f"{keys.shape[1]} heads of keys and {values.shape[1]} of values, where others have "
                f"{heads}. {IN_FULL}"
            )
    shape = KVShape(len(kept), heads, size, size, sources, rotated)
    return PerHead(shape, tuple(values.shape[3] for _, values in kept))


def _sources(model: PreTrainedModel, keeps: list[bool]) -> tuple[int, ...]:
    """Which kept layer each attends to: its own; without one, the last before it of its type."""
    types = list(getattr(model.config, "layer_types", None) or ("",) * len(keeps))
    sources: list[int] = []
    last: dict[str, int] = {}
    for kind, own in zip(types, keeps, strict=True):
        if own:
            last[kind] = sum(keeps[: len(sources)])
        elif kind not in last:
            raise UnsupportedModelError(
                f"This {model.config.model_type} model is not supported: layer {len(sources)} "
                f"hands no keys and values to its cache. {IN_FULL}"
            )
        sources.append(last[kind])
    return tuple(sources)


def _depends_on_position(keys: torch.Tensor) -> bool:
    """keys: [2 x TOKENS, H, 1, D], of the same tokens at two positions."""
    here, far = keys.float().chunk(2)
    return bool((here - far).norm() > SAME * here.norm())
