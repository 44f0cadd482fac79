"""Several sequences over chunks in place, copied layer by layer to where `attend_rows` takes them.

Many rows share a copy of a layer, which costs them less than rotating queries to each segment
would: on an H100 a twentieth of the layer's attention at 15% of 32K.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch

from fusionrag_integrations.attention.rows import Rows, sent
from fusionrag_integrations.attention.segments import SharedSequence, copy_segments
from fusionrag_integrations.attention.sequences import Room, SequenceRows


class PlacedRows:
    """Rows of sequences, and one room for a layer of each, side by side. Owned by a pass."""

    def __init__(
        self, rows: Sequence[Rows], sequences: Sequence[SharedSequence], in_triton: bool
    ) -> None:
        """in_triton: copy all segments in one launch."""
        self._sequences = tuple(sequences)
        self._in_triton = in_triton
        kept = sequences[0].room.keys
        ends = [sequence.end for sequence in sequences]
        self._starts = list(accumulate(ends[:-1], initial=0))
        # Zeros stand where there is nothing, in every layer.
        self._all = kept.new_zeros(2, 1, kept.shape[1], sum(ends), kept.shape[3])
        rooms = [
            Room(*self._all[..., start : start + end, :])
            for start, end in zip(self._starts, ends, strict=True)
        ]
        self.rows = SequenceRows(rows, rooms)

    def load(self, layer: int) -> SequenceRows:
        """The rows over a copy of one layer, which is layer 0 there."""
        if self._in_triton:
            from fusionrag_integrations.attention.gather import gather_segments

            segments = [sequence.segments for sequence in self._sequences]
            keys, values = self._all
            gather_segments(segments, self._table, layer, keys, values, by_token=False)
        else:
            for sequence, room in zip(self._sequences, self.rows.rooms, strict=True):
                copy_segments(sequence.segments, layer, room.keys[0], room.values[0])
        rooms = [sequence.room for sequence in self._sequences]
        for placed, private in zip(
            self._all,
            ([room.keys[layer] for room in rooms], [room.values[layer] for room in rooms]),
            strict=True,
        ):
            placed[0].index_copy_(1, self._tokens, torch.cat(private, dim=1))
        return self.rows

    @cached_property
    def _table(self) -> torch.Tensor:
        from fusionrag_integrations.attention.gather import table_of

        segments = [sequence.segments for sequence in self._sequences]
        return table_of(segments, self._starts, by_token=False)

    @cached_property
    def _tokens(self) -> torch.Tensor:
        """Where all private tokens belong, int64."""
        moved = [s.tokens + start for s, start in zip(self._sequences, self._starts, strict=True)]
        return sent(torch.cat(moved), self._all.device)


def by_position(layer: int, sequence: SharedSequence, in_triton: bool = False) -> Room:
    """A copy of one layer of a sequence in one place, [1, Hkv, N, D]; zeros where nothing is."""
    end = sequence.end
    placed = PlacedRows([Rows.at((end - 1,), sequence.room.keys.device)], [sequence], in_triton)
    return placed.load(layer).rooms[0]
