"""KV of a prompt's first tokens that an earlier request has computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fusionrag_integrations.attention.segments import Segment
from fusionrag_integrations.execution.buffer import KVBuffer


@dataclass(frozen=True, slots=True, eq=False)
class KVPiece:
    """The first `length` tokens of keys and values [L, Hkv, T, D], keys rotated to their positions.

    Requests share it: it is read, never changed.
    """

    keys: torch.Tensor
    values: torch.Tensor
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class KnownStart:
    """Pieces that follow one another from position 0 on.

    exact: whether they are what full attention computes; otherwise chunks' stored KV is in them.
    """

    pieces: Sequence[KVPiece]
    exact: bool

    def __len__(self) -> int:
        return sum(piece.length for piece in self.pieces)

    def segments(self) -> list[Segment]:
        """The pieces where they stand."""
        segments, start = [], 0
        for piece in self.pieces:
            segments.append(Segment(piece.keys, piece.values, 0, start, piece.length, first=start))
            start += piece.length
        return segments

    def place(self, buffer: KVBuffer) -> None:
        """Copy them to the buffer's first slots, which changes it."""
        start = 0
        for piece in self.pieces:
            buffer.copy_in(
                start, piece.keys[:, :, : piece.length], piece.values[:, :, : piece.length]
            )
            start += piece.length


NOTHING_KNOWN = KnownStart((), exact=True)
