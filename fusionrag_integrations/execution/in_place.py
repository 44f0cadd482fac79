"""The KV of one request over chunks in place: it holds its private tokens only."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch

from fusionrag_integrations.attention.attend import attend_in_place, by_position
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.attention.segments import PrivateRows, Segments
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.execution.buffer import RowsKV


class InPlaceKV:
    """Segments of shared chunks, and room for the tokens that the request computes itself.

    positions: of those, ascending. What a segment holds at one of them is stale and seen by no row.
    Every position up to a row's own belongs to a segment or is among them.
    """

    def __init__(
        self,
        segments: Segments,
        positions: Sequence[int],
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """keys, values: room for the private tokens' rotated keys and values, [L, Hkv, M, D]."""
        device = keys.device
        self.capacity = positions[-1] + 1
        self._segments = segments
        self._keys = keys
        self._values = values
        self._tokens = torch.tensor(positions, device=device)
        self._stale = torch.zeros(segments.stop, dtype=torch.uint8, device=device)
        self._stale.index_fill_(0, self._tokens[: bisect_left(positions, segments.stop)], 1)

    def over(self, rows: Rows) -> RowsKV:
        """What a pass over these rows, all of them private tokens, uses."""
        private = PrivateRows(rows, self._tokens, self.capacity, self._stale)
        return _InPlaceRows(self._segments, self._keys, self._values, private)

    def copy_out(self, positions: range) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of the keys and values at these positions, [L, Hkv, T, D]."""
        last = Rows.at((self.capacity - 1,), self._keys.device)
        private = PrivateRows(last, self._tokens, self.capacity, self._stale)
        copied = [
            by_position(layer, self._keys[layer], self._values[layer], private, self._segments)
            for layer in range(len(self._keys))
        ]
        slots = slice(positions.start, positions.stop)
        keys, values = (torch.stack(kv)[:, :, slots] for kv in zip(*copied, strict=True))
        return keys.contiguous(), values.contiguous()


class _InPlaceRows:
    """Rows of a pass over such KV."""

    def __init__(
        self, segments: Segments, keys: torch.Tensor, values: torch.Tensor, private: PrivateRows
    ) -> None:
        self.rows = private.rows
        self._segments = segments
        self._keys = keys
        self._values = values
        self._private = private

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        for room, new in ((self._keys, keys), (self._values, values)):
            room[layer].index_copy_(1, self._private.slots, new)

    def attend(self, layer: int, queries: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        keys, values = self._keys[layer], self._values[layer]
        return attend_in_place(layer, queries, keys, values, self._private, self._segments, spec)

    def keys(self, layer: int) -> torch.Tensor:
        """A copy; zeros where there are none."""
        private = self._keys[layer], self._values[layer]
        keys, _ = by_position(layer, *private, self._private, self._segments)
        return keys[:, : self.rows.last + 1]
