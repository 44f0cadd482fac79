"""An independent route to everything the engine computes: transformers' own model and caches.

Nothing here uses the package. Keys reach another position by running the model there: with all
positions shifted alike, attention is unchanged and the keys come out rotated to the new place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

KV = tuple[torch.Tensor, torch.Tensor]


class Reference:
    """A model run densely, with a cache that never truncates."""

    def __init__(self, model: PreTrainedModel) -> None:
        model.set_attn_implementation("eager")  # every family has it
        self.model = model.eval()
        self.layers = model.config.num_hidden_layers
        self.latent = hasattr(model.base_model.layers[0].self_attn, "expand_kv")

    def new_cache(self) -> Cache:
        return Cache(layers=[DynamicLayer() for _ in range(self.layers)])

    @torch.inference_mode()
    def feed(self, cache: Cache, ids: Sequence[int], start: int) -> torch.Tensor:
        """Append tokens at consecutive positions from `start`; logits [T, V]."""
        device = self.model.device
        positions = torch.arange(start, start + len(ids), device=device)[None]
        return self.model(
            input_ids=torch.tensor([list(ids)], device=device),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits[0]

    def append(self, cache: Cache, kv: KV) -> None:
        """Append keys and values [L, Hkv, T, D] without computing anything."""
        for own, keys, values in zip(self._handed_over, *kv, strict=True):
            if self.latent:
                both = torch.cat([keys, values], dim=2)[None]
                cache.update(both[..., own.values :], both[..., : own.values], own.layer)
            else:
                repeats = keys.shape[0] // own.heads
                cache.update(
                    narrow(keys[::repeats], own.keys)[None],
                    narrow(values[::repeats], own.values)[None],
                    own.layer,
                )

    @torch.inference_mode()
    def dense(self, ids: Sequence[int], start: int = 0) -> tuple[torch.Tensor, KV]:
        """Logits [T, V] and KV [L, Hkv, T, D] of a whole sequence that begins at `start`."""
        cache = self.new_cache()
        logits = self.feed(cache, ids, start)
        return logits, self.kv(cache)

    def isolated(self, prefix: Sequence[int], ids: Sequence[int], start: int) -> KV:
        """KV of `ids` prefilled behind `prefix`, with `ids` beginning at position `start`."""
        _, (keys, values) = self.dense([*prefix, *ids], start - len(prefix))
        return keys[:, :, len(prefix) :], values[:, :, len(prefix) :]

    def kv(self, cache: Cache) -> KV:
        """In one shape for all layers that hand over any: of a latent and its key the two halves,
        narrower heads with zeros behind both of their halves, fewer heads repeated.
        """
        own = [layer for layer in cache.layers if layer.keys is not None]
        if self.latent:
            both = [torch.cat([one.values, one.keys], dim=3) for one in own]
            half = both[0].shape[3] // 2
            return torch.cat([b[..., :half] for b in both]), torch.cat(
                [b[..., half:] for b in both]
            )
        heads = max(one.keys.shape[1] for one in own)
        size = max(one.keys.shape[3] for one in own)
        keys, values = (
            torch.cat(
                [widen(kv, size)[:, [h * kv.shape[1] // heads for h in range(heads)]] for kv in kvs]
            )
            for kvs in ([one.keys for one in own], [one.values for one in own])
        )
        return keys, values

    @cached_property
    def _handed_over(self) -> list[HandedOver]:
        cache = self.new_cache()
        self.feed(cache, [3], 0)
        return [
            HandedOver(number, one.keys.shape[1], one.keys.shape[3], one.values.shape[3])
            for number, one in enumerate(cache.layers)
            if one.keys is not None
        ]


@dataclass(frozen=True)
class HandedOver:
    """What a layer of the model hands to its cache: how many heads, of which sizes."""

    layer: int
    heads: int
    keys: int
    values: int


def widen(states: torch.Tensor, size: int) -> torch.Tensor:
    own = states.shape[-1]
    wide = states.new_zeros(*states.shape[:-1], size)
    wide[..., places(own, size)] = states
    return wide


def narrow(states: torch.Tensor, size: int) -> torch.Tensor:
    return states[..., places(size, states.shape[-1])]


def places(own: int, size: int) -> list[int]:
    """Where the numbers of a head of `own` are in one of `size`."""
    return [*range(own // 2), *range(size // 2, size // 2 + own - own // 2)]
