"""Room for the KV of one request."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusionrag_integrations.rope import Rotation, rotate


class KVBuffer:
    """Room for the KV of one prompt and its answer. Owned by one request, never shared.

    keys, values: [L, Hkv, capacity, D]; slot i holds position i. Keys are rotated.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys = keys
        self.values = values

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def place(
        self, start: int, keys: torch.Tensor, values: torch.Tensor, rotation: Rotation
    ) -> None:
        """Copy unrotated keys, turned by `rotation`, and values [L, Hkv, T, D] into slots from
        `start` on. They may lie on any device and stay as they are. Changes the buffer.
        """
        slots = slice(start, start + keys.shape[2])
        self.keys[:, :, slots] = rotate(keys.to(self.keys.device), rotation)
        self.values[:, :, slots] = values

    def clear(self, positions: Sequence[int]) -> None:
        """Put zeros at `positions`. Changes the buffer."""
        slots = torch.tensor(positions, dtype=torch.int64, device=self.keys.device)
        self.keys.index_fill_(2, slots, 0.0)
        self.values.index_fill_(2, slots, 0.0)
