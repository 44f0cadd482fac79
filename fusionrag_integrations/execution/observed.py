"""Placed KV beside what a pass computes in its place, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.execution.buffer import BufferBatch, BufferRows, KVBuffer
from fusionrag_integrations.execution.rows_kv import RowsBatch, RowsKV

KV = tuple[torch.Tensor, torch.Tensor]
"""Rotated keys and values, [Hkv, tokens, D]."""


class Observer(Protocol):
    """Is given some tokens' KV in each layer, before the layer's attention reads it."""

    def observe(self, buffer: KVBuffer, layer: int, placed: KV, computed: KV) -> None:
        """placed: a copy of what the buffer held of the tokens, in their order. computed: what it
        holds now.
        """
        ...


class ObservedKV:
    """A buffer that gives an observer what stood at certain tokens before they are written."""

    def __init__(self, buffer: KVBuffer, positions: Sequence[int], observer: Observer) -> None:
        self._buffer = buffer
        self._positions = positions
        self._observer = observer

    @property
    def capacity(self) -> int:
        return self._buffer.capacity

    def copy_out(self, positions: range) -> KV:
        return self._buffer.copy_out(positions)

    def hand_over(self, length: int) -> KV:
        return self._buffer.hand_over(length)

    def over(self, rows: Rows) -> RowsKV:
        """What a pass over these rows uses; observed if all of the tokens are among them."""
        inner = BufferRows(self._buffer, rows)
        index = {position: row for row, position in enumerate(rows.positions)}
        observed = [index[position] for position in self._positions if position in index]
        if len(observed) < len(self._positions):
            return inner
        return _ObservedRows(inner, self._positions, observed, self._observer)


class _ObservedRows:
    """Rows that hold all of the tokens."""

    def __init__(
        self,
        inner: BufferRows,
        positions: Sequence[int],
        observed: Sequence[int],
        observer: Observer,
    ) -> None:
        """observed: which of the rows the tokens at `positions` are."""
        device = inner.rows.device
        self.inner = inner
        self._slots = torch.tensor(positions, dtype=torch.int64, device=device)
        self._observed = torch.tensor(observed, dtype=torch.int64, device=device)
        self._observer = observer

    @property
    def rows(self) -> Rows:
        return self.inner.rows

    @property
    def batch(self) -> Callable[[Sequence[_ObservedRows]], RowsBatch]:
        return _ObservedBatch

    def layer(self, layer: int) -> KV:
        return self.inner.layer(layer)

    def placed(self, layer: int) -> KV:
        """A copy of what the buffer holds of the tokens."""
        keys, values = self.inner.buffer.layer(layer)
        return keys[:, self._slots], values[:, self._slots]

    def observe(self, layer: int, placed: KV, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Call the observer. keys, values: of all rows, as they were written."""
        computed = keys[:, self._observed], values[:, self._observed]
        self._observer.observe(self.inner.buffer, layer, placed, computed)


class _ObservedBatch:
    """Rows of several such buffers. Each observer is called by itself, between one write and one
    attention of all.
    """

    def __init__(self, alike: Sequence[_ObservedRows]) -> None:
        self._alike = alike
        self._sizes = [len(one.rows) for one in alike]
        self._inner = BufferBatch([one.inner for one in alike])

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the rows' keys and values in place, and call the observers."""
        placed = [one.placed(layer) for one in self._alike]
        self._inner.write(layer, keys, values)
        new = (torch.split(kv, self._sizes, dim=1) for kv in (keys, values))
        for one, before, *computed in zip(self._alike, placed, *new, strict=True):
            one.observe(layer, before, *computed)

    def attend(self, layer: int, queries: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        return self._inner.attend(layer, queries, spec)
