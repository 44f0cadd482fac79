"""The KV of one request over chunks that stay where they are: it holds its own tokens only."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch

from fusionrag_integrations.kernels import (
    OwnRows,
    Rows,
    Segments,
    attend_in_place,
    by_position,
)
from fusionrag_integrations.model.buffer import RowsKV


class InPlaceKV:
    """Segments of shared chunks, and room for the tokens that the request computes itself.

    own: the positions of those, ascending. What a segment holds at one of them is stale and seen by
    no row. Up to a row's own position, each belongs to a segment or is among them.
    """

    def __init__(
        self, segments: Segments, own: Sequence[int], keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """keys, values: room for the own tokens' rotated keys and values, [L, Hkv, M, D]."""
        device = keys.device
        self.capacity = own[-1] + 1
        self._segments = segments
        self._keys = keys
        self._values = values
        self._own = torch.tensor(own, device=device)
        self._stale = torch.zeros(segments.stop, dtype=torch.uint8, device=device)
        self._stale.index_fill_(0, self._own[: bisect_left(own, segments.stop)], 1)

    def over(self, rows: Rows) -> RowsKV:
        """What a pass over these rows, own tokens all, uses."""
        own_rows = OwnRows(rows, self._own, self.capacity, self._stale)
        return _InPlaceRows(self._segments, self._keys, self._values, own_rows)


class _InPlaceRows:
    """Rows of a pass over such KV."""

    def __init__(
        self,
        segments: Segments,
        keys: torch.Tensor,
        values: torch.Tensor,
        own_rows: OwnRows,
    ) -> None:
        self.rows = own_rows.rows
        self._segments = segments
        self._keys = keys
        self._values = values
        self._own_rows = own_rows

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        for own, new in ((self._keys, keys), (self._values, values)):
            own[layer].index_copy_(1, self._own_rows.slots, new)

    def attend(
        self, layer: int, queries: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        return attend_in_place(
            layer,
            queries,
            self._keys[layer],
            self._values[layer],
            self._own_rows,
            self._segments,
            scaling,
            window,
        )

    def keys(self, layer: int) -> torch.Tensor:
        """A copy; zeros where there are none."""
        own = self._keys[layer], self._values[layer]
        keys, _ = by_position(layer, *own, self._own_rows, self._segments)
        return keys[:, : self.rows.last + 1]
