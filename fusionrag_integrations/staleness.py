"""How far a prompt's placed KV is off, as a few of its tokens show when they are computed again."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusionrag_integrations.chunk_kv import deviation
from fusionrag_integrations.model import KVBuffer
from fusionrag_integrations.observed import KV


class Staleness:
    """Observes a pass that computes certain tokens; afterwards their placed KV can be put back."""

    def __init__(self, positions: Sequence[int]) -> None:
        self._positions = list(positions)
        self._placed: dict[int, KV] = {}
        self._off: dict[int, torch.Tensor] = {}

    def observe(self, buffer: KVBuffer, layer: int, placed: KV, computed: KV) -> None:
        """Keep what a layer's KV of the tokens was, and how far it is off."""
        old, new = ((keys[None], values[None]) for keys, values in (placed, computed))
        self._placed[layer] = placed
        self._off[layer] = deviation(old, new)[0]

    def of(self, layers: Sequence[int]) -> torch.Tensor:
        """By layer and token, as `deviation` measures it, float32 [len(layers), tokens]."""
        return torch.stack([self._off[layer] for layer in layers])

    @torch.inference_mode()
    def put_back(self, buffer: KVBuffer) -> None:
        """Place what was placed: recompute is yet to see what it is off by."""
        for layer, placed in self._placed.items():
            for slots, old in zip(buffer.layer(layer), placed, strict=True):
                slots[:, self._positions] = old
