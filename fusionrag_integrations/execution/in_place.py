"""The KV of one request over chunks in place: it holds its private tokens only."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, cast

import torch

from fusionrag_integrations.attention.attend import (
    attention_in_place,
    can_gather,
    write_rows,
)
from fusionrag_integrations.attention.placed import by_position
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.attention.segments import PrivateRows, Segments, SharedSequence
from fusionrag_integrations.attention.sequences import Room
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.execution.rows_kv import RowsBatch

if TYPE_CHECKING:
    from fusionrag_integrations.attention.segment_attention import SegmentAttention


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
        self.capacity = positions[-1] + 1
        self.sequence = SharedSequence(segments, Room(keys, values), torch.tensor(positions))

    def over(self, rows: Rows) -> InPlaceRows:
        """What a pass over these rows, all of them private tokens, uses."""
        return InPlaceRows(self.sequence, rows)

    def private(self, positions: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of the keys and values that were computed at these, [L, Hkv, T, D]."""
        room = self.sequence.room
        tokens = self.sequence.tokens
        slots = torch.searchsorted(tokens, torch.tensor(positions, device=tokens.device))
        return room.keys[:, :, slots], room.values[:, :, slots]

    def copy_out(self, positions: range) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of the keys and values at these positions, [L, Hkv, T, D]."""
        private = self.sequence.room.keys
        in_triton = can_gather(private.device)
        rooms = [by_position(layer, self.sequence, in_triton) for layer in range(len(private))]
        slots = slice(positions.start, positions.stop)
        keys = torch.cat([room.keys[:, :, slots] for room in rooms])
        return keys, torch.cat([room.values[:, :, slots] for room in rooms])

    def hand_over(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy: chunks are shared."""
        return self.copy_out(range(length))


class InPlaceRows:
    """Rows of a pass over such KV."""

    def __init__(self, sequence: SharedSequence, rows: Rows) -> None:
        self.sequence = sequence
        self.rows = rows

    @property
    def batch(self) -> Callable[[Sequence[InPlaceRows]], RowsBatch]:
        return OneRowEach if len(self.rows) == 1 else InPlaceBatch

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy; zeros where there are none."""
        room = by_position(layer, self.sequence, can_gather(self.rows.device))
        seen = slice(self.rows.last + 1)
        return room.keys[0, :, seen], room.values[0, :, seen]


class InPlaceBatch:
    """Rows of several such sequences."""

    def __init__(self, alike: Sequence[InPlaceRows]) -> None:
        sequences = [one.sequence for one in alike]
        self._rows = PrivateRows([one.rows for one in alike], sequences)
        self._attention = attention_in_place(self._rows)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        write_rows(layer, keys, values, self._rows)

    def attend(self, layer: int, queries: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        return self._attention.attend(layer, queries, spec)


class OneRowEach(InPlaceBatch):
    """Decode, which reads chunks otherwise than passes over many rows do."""

    def layout(self, heads: int) -> Hashable:
        return self._rows.longest, self._in_triton.plan(heads).layout

    def fix(self, window: int) -> None:
        self._rows.first_seen(window)

    def take(self, other: OneRowEach, heads: int) -> None:
        self.move(other)
        self._in_triton.take(other._in_triton.plan(heads))

    def move(self, other: OneRowEach) -> None:
        self._rows.take(other._rows)

    @property
    def _in_triton(self) -> SegmentAttention:
        """Only such batches are recorded."""
        return cast("SegmentAttention", self._attention)
