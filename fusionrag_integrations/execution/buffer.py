"""The KV of a sequence, and that of one request with a slot for every position."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch

from fusionrag_integrations.attention.attend import attend_rows, write_rows
from fusionrag_integrations.attention.rope import RotaryTable, Rotation, rotate
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.attention.segments import Segment, Segments
from fusionrag_integrations.attention.sequences import Room, SequenceRows
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.execution.rows_kv import RowsBatch, RowsKV

STAGES = 4  # groups of layers that are placed together: a copy a layer and chunk is too many
STAGED_BYTES = 2 << 30  # of KV on its way through a device's memory; more is split


class SequenceKV(Protocol):
    """KV of one sequence. Passes over its rows write to it."""

    @property
    def capacity(self) -> int:
        """Positions from here on have no room."""
        ...

    def over(self, rows: Rows) -> RowsKV:
        """What a pass over these rows uses."""
        ...

    def copy_out(self, positions: range) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of the rotated keys and the values at these positions, [L, Hkv, T, D]."""
        ...

    def hand_over(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys and values, [L, Hkv, T, D], of at least the first `length` positions.

        Nothing may be written to this any more: it isn't copied where that isn't needed.
        """
        ...


class KVBuffer:
    """Room for the KV of one prompt and its answer. Owned by one request, never shared.

    keys, values: [L, Hkv, capacity, D]; slot i holds position i. Keys are rotated.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        filled_on: torch.cuda.Stream | None = None,
    ) -> None:
        """filled_on: the stream that `fill` queues its work on; the current one by default."""
        self._keys = keys
        self._values = values
        self._unfilled: list[range] = []  # groups of layers that are written when they are needed
        self._write: Callable[[slice], None] = _nothing
        self._stream = filled_on
        self._filled: dict[int, torch.cuda.Event] = {}  # by layer, while nobody has waited for it

    @property
    def keys(self) -> torch.Tensor:
        """All layers', once they are filled."""
        self.wait()
        return self._keys

    @property
    def values(self) -> torch.Tensor:
        """All layers', once they are filled."""
        self.wait()
        return self._values

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer's keys and values [Hkv, capacity, D], once it is filled."""
        self._wait(layer)
        return self._keys[layer], self._values[layer]

    def wait(self) -> None:
        """Let the current stream wait until all layers are filled."""
        for layer in range(self._keys.shape[0]):
            self._wait(layer)

    @property
    def room(self) -> Room:
        """Where all layers are, whether they are filled or not."""
        return Room(self._keys, self._values)

    @property
    def filled(self) -> bool:
        """Whether no layer is waited for any more."""
        return not (self._unfilled or self._filled)

    @property
    def capacity(self) -> int:
        return self._keys.shape[2]

    def copy(self) -> KVBuffer:
        """Another buffer with the same content."""
        return KVBuffer(self.keys.clone(), self.values.clone())

    def over(self, rows: Rows) -> RowsKV:
        """What a pass over these rows uses."""
        return BufferRows(self, rows)

    def with_private_tokens(self, positions: Sequence[int]) -> KVBuffer:
        """The buffer itself: all of its tokens are."""
        return self

    def as_buffer(self) -> KVBuffer:
        """The buffer itself."""
        return self

    def fill(self, write: Callable[[slice], None], ready: Callable[[slice], bool]) -> None:
        """Call `write` with groups of layers, which it is to `place` KV in.

        On CUDA what is all `ready` is one group, as far as memory allows: to queue copies costs
        more time than layers that begin early would save. On a CPU some layers of a chunk stay in
        its cache until they are placed, all of them don't. Groups that aren't ready, and those
        behind them, are written when one of their layers is read: that waits, and raises what
        `write` raises.

        On CUDA the work is queued on another stream, so that KV moves while layers compute:
        what reads a layer waits for its group, and the host for none that is ready. `write` must
        leave nothing that it needs to the main stream.
        """
        layers = range(self._keys.shape[0])
        groups = STAGES
        if self._keys.device.type == "cuda" and ready(_slice(layers)):
            groups = -(-2 * self._keys.nbytes // STAGED_BYTES)
        size = -(-len(layers) // groups)
        self._write = write
        self._unfilled = [layers[start : start + size] for start in layers[::size]]
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._keys.device))
            for tensor in (self._keys, self._values):
                tensor.record_stream(self._stream)
        while self._unfilled and ready(_slice(self._unfilled[0])):
            self._fill_next()

    def place(
        self,
        start: int,
        keys: torch.Tensor,
        values: torch.Tensor,
        rotation: Rotation,
        layers: slice = slice(None),
    ) -> None:
        """Copy keys, rotated by `rotation`, and values into slots from `start` on.

        keys, values: [layers, Hkv, T, D], on any device; they stay as they are. Changes the buffer.
        """
        slots = slice(start, start + keys.shape[2])
        rotated = rotate(keys.to(self._keys.device), rotation.of_layers(layers))
        self._keys[layers, :, slots] = rotated
        self._values[layers, :, slots] = values

    def place_all(self, segments: Sequence[Segment], rotations: RotaryTable, layers: slice) -> None:
        """Copy all segments to their positions, on CUDA with Triton.

        Their KV has the chosen layers, and keys in the canonical frame; rotations: to every
        position in order. Changes the buffer.
        """
        if not segments:
            return
        from fusionrag_integrations.attention.gather import gather_segments, table_of

        every = [Segments(segments, rotations)]
        table = table_of(every, [0], by_token=True)
        gather_segments(every, table, 0, self._keys[layers], self._values[layers], by_token=True)

    def copy_in(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy keys, rotated already, and values [L, Hkv, T, D] into slots from `start` on.

        No chunk is placed there. Changes the buffer.
        """
        slots = slice(start, start + keys.shape[2])
        self._keys[:, :, slots], self._values[:, :, slots] = keys, values

    def copy_out(self, positions: range) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of the keys and values at these positions, [L, Hkv, T, D]."""
        slots = slice(positions.start, positions.stop)
        return self.keys[:, :, slots].clone(), self.values[:, :, slots].clone()

    def hand_over(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All of it, as it is."""
        return self.keys, self.values

    def clear(self, positions: Sequence[int]) -> None:
        """Put zeros at `positions`. Changes the buffer."""
        slots = torch.tensor(positions, dtype=torch.int64, device=self._keys.device)
        self._keys.index_fill_(2, slots, 0.0)
        self._values.index_fill_(2, slots, 0.0)

    @torch.inference_mode()  # whoever reads a layer first
    def _fill_next(self) -> None:
        group = self._unfilled[0]
        if self._stream is None:
            self._write(_slice(group))
        else:
            with torch.cuda.stream(self._stream):
                self._write(_slice(group))
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
            self._filled |= dict.fromkeys(group, event)
        del self._unfilled[0]
        if not self._unfilled:
            self._write = _nothing  # frees what it was written from

    def _wait(self, layer: int) -> None:
        """Let the current stream wait until the layer is filled, unless it has before."""
        while self._unfilled and self._unfilled[0].start <= layer:
            self._fill_next()
        if event := self._filled.pop(layer, None):
            torch.cuda.current_stream(self._keys.device).wait_event(event)


def _nothing(layers: slice) -> None:
    """Write no layer."""


def _slice(layers: range) -> slice:
    return slice(layers.start, layers.stop)


class BufferRows:
    """Rows of a buffer: slot i is position i."""

    def __init__(self, buffer: KVBuffer, rows: Rows) -> None:
        self.buffer = buffer
        self.rows = rows

    @property
    def batch(self) -> Callable[[Sequence[BufferRows]], RowsBatch]:
        return BufferBatch

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.buffer.layer(layer)
        return keys[:, : self.rows.last + 1], values[:, : self.rows.last + 1]


class BufferBatch:
    """Rows of several buffers."""

    def __init__(self, alike: Sequence[BufferRows]) -> None:
        self._waiting = [one.buffer for one in alike if not one.buffer.filled]
        self._rows = SequenceRows([one.rows for one in alike], [one.buffer.room for one in alike])

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        for buffer in self._waiting:
            buffer.layer(layer)
        write_rows(layer, keys, values, self._rows)

    def attend(self, layer: int, queries: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        return attend_rows(layer, queries, self._rows, spec)

    def layout(self, heads: int) -> Hashable:
        return self._rows.longest

    def fix(self, window: int) -> None:
        self._rows.first_seen(window)

    def take(self, other: BufferBatch, heads: int) -> None:
        self.move(other)

    def move(self, other: BufferBatch) -> None:
        for buffer in other._waiting:
            buffer.wait()
        self._rows.take(other._rows)
