"""A sequence whose KV is shared chunks, in place, and private tokens.

A chunk that several requests use has its keys rotated once, each to its own place in the chunk. A
request knows where its chunks begin, so that a chunk's key i stands at position start + i. Instead
of the keys, queries are rotated, back by the segment's start: only the distance counts.

    q at position p, k at i, both rotated:   q(p - start) . k(i) = q(p) . k(start + i)

What a request computes itself, its private tokens, is kept apart: keys rotated to their positions.
A chunk's token that the request computed anew is stale in the segment, and no row sees it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from fusionrag_integrations.attention.rope import RotaryTable
from fusionrag_integrations.attention.rows import Rows, sent
from fusionrag_integrations.attention.sequences import ALIGNED, Room, SequenceRows
from fusionrag_integrations.errors import InvalidInputError


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A run of a chunk's KV in a sequence.

    keys, values: the chunk's, contiguous [L, Hkv, T, D]; key t is rotated to position first + t.
    Its tokens [source_start, source_start + length) stand at positions [start, start + length).
    """

    keys: torch.Tensor
    values: torch.Tensor
    source_start: int
    start: int
    length: int
    first: int = 0

    @property
    def shift(self) -> int:
        """How far its keys have to be moved."""
        return self.start - self.source_start - self.first

    @property
    def run(self) -> tuple[int, ...]:
        """What is the same wherever the run stands: addresses of its first key and value, its
        length, elements from head to head and from layer to layer.
        """
        addresses = (
            kv.data_ptr() + self.source_start * kv.stride(2) * kv.element_size()
            for kv in (self.keys, self.values)
        )
        return (*addresses, self.length, self.keys.stride(1), self.keys.stride(0))


class Segments:
    """The chunks of one sequence, in order and apart. Shared KV is read, never changed.

    runs: `Segment.run` of each. aligned: whether addresses are multiples of `ALIGNED` bytes.
    rotations: for chunks that are read in place, from position 0 to each segment's `shift`; for
    chunks to be copied, to every position.

    Raises `InvalidInputError` for KV that can't be read by its address.
    """

    def __init__(self, segments: Sequence[Segment], rotations: RotaryTable) -> None:
        _check(segments)
        self.segments = tuple(segments)
        self.rotations = rotations
        self.stop = segments[-1].start + segments[-1].length
        self.runs = tuple(segment.run for segment in segments)
        self.aligned = all(not (run[0] | run[1]) % ALIGNED for run in self.runs)

    def rotation_entry(self, number: int, of_each: int = 1) -> list[int]:
        """Addresses of a segment's cosines and sines, and elements from layer to layer.

        of_each: 0 where rotations are of positions, so that a segment has none of its own.
        """
        cos, sin = self.rotations.cos, self.rotations.sin
        skipped = number * of_each * cos.stride(1) * cos.element_size()
        by_layer = cos.stride(0) if len(cos) > 1 else 0
        return [cos.data_ptr() + skipped, sin.data_ptr() + skipped, by_layer]


def _check(segments: Sequence[Segment]) -> None:
    tensors = [kv for segment in segments for kv in (segment.keys, segment.values)]
    kinds = {(kv.dtype, kv.device, kv.shape[:2], kv.shape[3]) for kv in tensors}
    alike = all(segment.keys.shape == segment.values.shape for segment in segments)
    if len(kinds) > 1 or not alike or not all(kv.is_contiguous() for kv in tensors):
        raise InvalidInputError(
            "Chunks that are read in place need contiguous KV of one dtype, device and head "
            f"count; got {', '.join(sorted({f'{kv.dtype} {tuple(kv.shape)}' for kv in tensors}))}."
        )


@dataclass(frozen=True, eq=False)
class SharedSequence:
    """A sequence over segments. room: of its private tokens; tokens: their positions, ascending,
    int64 [M] on the host. Every position up to a row's own is a segment's or a private token's.
    """

    segments: Segments
    room: Room
    tokens: torch.Tensor

    @property
    def end(self) -> int:
        """No position that it holds is behind this one."""
        return max(self.segments.stop, int(self.tokens[-1]) + 1)

    @cached_property
    def stale(self) -> torch.Tensor:
        """Which positions of segments have a private token, uint8 [segments.stop]."""
        stale = torch.zeros(self.segments.stop, dtype=torch.uint8)
        stale[self.tokens[self.tokens < self.segments.stop]] = 1
        return sent(stale, self.room.keys.device)


class PrivateRows(SequenceRows):
    """Rows of several such sequences, among their private tokens: a slot is a private token."""

    def __init__(self, rows: Sequence[Rows], sequences: Sequence[SharedSequence]) -> None:
        super().__init__(rows, [sequence.room for sequence in sequences])
        self.sequences = tuple(sequences)

    @cached_property
    def slots(self) -> torch.Tensor:
        """Which private token each row is, int64 [R]."""
        return self._places(0, right=False)

    def _seen_from(self, window: int) -> torch.Tensor:
        return self._places(window, right=True)

    def _places(self, before: int, right: bool) -> torch.Tensor:
        """Where positions so far before the rows' would be among their private tokens."""
        places = [
            torch.searchsorted(sequence.tokens, torch.tensor(one.positions) - before, right=right)
            for one, sequence in zip(self.rows, self.sequences, strict=True)
        ]
        return sent(torch.cat(places), self.device)


def copy_segments(segments: Segments, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Put one layer of segments where they belong in keys and values [Hkv, N, D]: the formula."""
    cos, sin = segments.rotations.layer(layer)
    for number, segment in enumerate(segments.segments):
        source = slice(segment.source_start, segment.source_start + segment.length)
        target = slice(segment.start, segment.start + segment.length)
        kept = segment.keys[layer, :, source].float()
        rotated = kept * cos[number] + kept[..., segments.rotations.other] * sin[number]
        keys[:, target] = rotated.to(keys.dtype)
        values[:, target] = segment.values[layer, :, source]
