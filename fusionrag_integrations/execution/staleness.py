"""How far a prompt's placed KV is off, as a few of its tokens show when they are computed again."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusionrag_integrations.execution.buffer import KVBuffer
from fusionrag_integrations.execution.observed import KV

TINY = 1e-30  # of keys or values that are zero


def deviations(placed: KV, computed: KV) -> torch.Tensor:
    """Each token's squared distance relative to its squared size as it was computed, mean over keys
    and values, float32 [L, tokens]. Both: [L, Hkv, tokens, D].
    """
    shares = []
    for old, new in zip(placed, computed, strict=True):
        distance = (new.float() - old.float()).square().sum((1, 3))
        shares.append(distance / new.float().square().sum((1, 3)).clamp(min=TINY))
    return torch.stack(shares).mean(0)


class Staleness:
    """Observes a pass that computes certain tokens; afterwards their placed KV can be put back."""

    def __init__(self, positions: Sequence[int], device: torch.device) -> None:
        """device: where the KV is."""
        self._slots = torch.tensor(positions, dtype=torch.int64, device=device)
        self._placed: dict[int, KV] = {}
        self._off: dict[int, torch.Tensor] = {}

    def observe(self, buffer: KVBuffer, layer: int, placed: KV, computed: KV) -> None:
        """Keep what a layer's KV of the tokens was, and how far it is off."""
        self._placed[layer] = placed
        one_layer = [(keys[None], values[None]) for keys, values in (placed, computed)]
        self._off[layer] = deviations(*one_layer)[0]

    def by_layer(self) -> torch.Tensor:
        """As `deviations`, float32 [layers that ran, tokens]."""
        return torch.stack(list(self._off.values()))

    @torch.inference_mode()
    def put_back(self, buffer: KVBuffer) -> None:
        """Place what was placed: recompute is yet to see what it is off by."""
        for layer, placed in self._placed.items():
            for slots, old in zip(buffer.layer(layer), placed, strict=True):
                slots.index_copy_(1, self._slots, old)
