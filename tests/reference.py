"""An independent route to everything the engine computes: transformers' own model and caches.

Nothing here uses the package. Keys reach another position by running the model there: with all
positions shifted alike, attention is unchanged and the keys come out rotated to the new place.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        for layer in range(self.layers):
            cache.update(kv[0][layer : layer + 1], kv[1][layer : layer + 1], layer)

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

    @staticmethod
    def kv(cache: Cache) -> KV:
        return (
            torch.cat([layer.keys for layer in cache.layers]),
            torch.cat([layer.values for layer in cache.layers]),
        )
