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

import torch

from fusionrag_integrations.attention.rope import RotaryTable
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.errors import InvalidInputError

ALIGNED = 16  # bytes that a GPU reads at once


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


class Segments:
    """The chunks of one sequence, in order and apart. Shared KV is read, never changed.

    table: int64 [S, 6] for the kernels: start, length, the addresses of the first key and value,
    elements from head to head and from layer to layer. aligned: whether addresses are multiples of
    `ALIGNED` bytes. rotations: for chunks that are read in place, from position 0 to each segment's
    `shift`; for chunks to be copied, to every position.

    Raises `InvalidInputError` for KV that can't be read by its address.
    """

    def __init__(self, segments: Sequence[Segment], rotations: RotaryTable) -> None:
        _check(segments)
        self.segments = tuple(segments)
        self.rotations = rotations
        self.stop = segments[-1].start + segments[-1].length
        rows = [
            [
                segment.start,
                segment.length,
                *(
                    kv.data_ptr() + segment.source_start * kv.stride(2) * kv.element_size()
                    for kv in (segment.keys, segment.values)
                ),
                segment.keys.stride(1),
                segment.keys.stride(0),
            ]
            for segment in segments
        ]
        self.aligned = all(not (row[2] | row[3]) % ALIGNED for row in rows)
        self.table = _sent(torch.tensor(rows, dtype=torch.int64), segments[0].keys.device)


def _sent(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device, behind what is queued there, without waiting for it."""
    if device.type != "cuda":
        return table.to(device)
    return table.pin_memory().to(device, non_blocking=True)


def _check(segments: Sequence[Segment]) -> None:
    tensors = [kv for segment in segments for kv in (segment.keys, segment.values)]
    kinds = {(kv.dtype, kv.device, kv.shape[:2], kv.shape[3]) for kv in tensors}
    alike = all(segment.keys.shape == segment.values.shape for segment in segments)
    if len(kinds) > 1 or not alike or not all(kv.is_contiguous() for kv in tensors):
        raise InvalidInputError(
            "Chunks that are read in place need contiguous KV of one dtype, device and head "
            f"count; got {', '.join(sorted({f'{kv.dtype} {tuple(kv.shape)}' for kv in tensors}))}."
        )


class PrivateRows:
    """Rows of a pass among a sequence's private tokens.

    rows: where they stand; slots: which private tokens they are, int64 [R]. tokens: positions of
    all private tokens, ascending, int64 [M], none of them behind `end`. stale: which positions of
    segments have a private token, uint8 [segments.stop].
    """

    def __init__(self, rows: Rows, tokens: torch.Tensor, end: int, stale: torch.Tensor) -> None:
        self.rows = rows
        self.tokens = tokens
        self.end = end
        self.stale = stale
        self.slots = torch.searchsorted(tokens, rows.on_device)
        self._first_slots: dict[int, torch.Tensor] = {}

    def first_slots(self, window: int) -> torch.Tensor:
        """The first private token that each row sees, int64 [R]; worked out once for all layers."""
        if window not in self._first_slots:
            outside = self.rows.on_device - window
            self._first_slots[window] = torch.searchsorted(self.tokens, outside, right=True)
        return self._first_slots[window]


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
