"""Placed KV beside what a pass computes in its place, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from fusionrag_integrations.kernels import Rows
from fusionrag_integrations.model import KVBuffer, RowsKV

KV = tuple[torch.Tensor, torch.Tensor]
"""Rotated keys and values, [Hkv, tokens, D]."""


class Observer(Protocol):
    """What is told of some tokens in each layer, just before its attention reads them."""

    def observe(self, buffer: KVBuffer, layer: int, placed: KV, computed: KV) -> None:
        """placed: a copy of what the buffer held of the tokens, in their order. computed: what it
        holds now.
        """
        ...


class ObservedKV:
    """A buffer in which writing certain tokens tells an observer what stood there before."""

    def __init__(self, buffer: KVBuffer, positions: Sequence[int], observer: Observer) -> None:
        self._buffer = buffer
        self._positions = positions
        self._observer = observer

    @property
    def capacity(self) -> int:
        return self._buffer.capacity

    def over(self, rows: Rows) -> RowsKV:
        """What a pass over these rows uses. Unless they hold all of the tokens, nothing is told."""
        own = self._buffer.over(rows)
        index = {position: row for row, position in enumerate(rows.positions)}
        observed = [index[position] for position in self._positions if position in index]
        if len(observed) < len(self._positions):
            return own
        return _ObservedRows(self._buffer, own, self._positions, observed, self._observer)


class _ObservedRows:
    """Rows that hold all of the tokens."""

    def __init__(
        self,
        buffer: KVBuffer,
        own: RowsKV,
        positions: Sequence[int],
        observed: Sequence[int],
        observer: Observer,
    ) -> None:
        """observed: which of the rows the tokens at `positions` are."""
        device = own.rows.on_device.device
        self.rows = own.rows
        self._buffer = buffer
        self._own = own
        self._slots = torch.tensor(positions, dtype=torch.int64, device=device)
        self._observed = torch.tensor(observed, dtype=torch.int64, device=device)
        self._observer = observer

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the rows' keys and values in place, and tell."""
        before_keys, before_values = self._buffer.layer(layer)
        placed = before_keys[:, self._slots], before_values[:, self._slots]
        self._own.write(layer, keys, values)
        computed = keys[:, self._observed], values[:, self._observed]
        self._observer.observe(self._buffer, layer, placed, computed)

    def attend(
        self, layer: int, queries: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        return self._own.attend(layer, queries, scaling, window)

    def keys(self, layer: int) -> torch.Tensor:
        return self._own.keys(layer)
