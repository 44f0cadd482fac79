"""Rows of several sequences in one pass, and where the KV of each is: what attention takes.

Everything is worked out once a pass. Layers then differ by their number only, so that Python's
share of a layer doesn't grow with the number of sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain

import torch

from fusionrag_integrations.attention.rows import Block, Rows, sent, visible
from fusionrag_integrations.errors import InvalidInputError

ALIGNED = 16  # bytes that a GPU reads at once
MASKS_KEPT = 64 << 20  # bytes of one pass's; where there would be more, each layer makes its own


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """The KV of a sequence's tokens: keys, values [L, Hkv, N, D], a token a slot, keys rotated."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def entry(self) -> tuple[int, ...]:
        """Addresses of keys and values, elements between layers and between heads."""
        addresses = self.keys.data_ptr(), self.values.data_ptr()
        return (*addresses, *self.keys.stride()[:2])

    @property
    def aligned(self) -> bool:
        """Whether keys and values have the same strides, slots are contiguous, and both begin at
        multiples of `ALIGNED` bytes.
        """
        addresses = self.keys.data_ptr() | self.values.data_ptr()
        strides = self.keys.stride()
        contiguous = strides[2:] == (self.keys.shape[3], 1)
        return contiguous and strides == self.values.stride() and not addresses % ALIGNED


class SequenceRows:
    """Rows of several sequences, those of one behind those of another. Slot i holds position i.

    rows, rooms: by sequence. slots: which slot each row is written to, and the last that it sees,
    int64 [R]. longest: no sequence has more slots; `rounded`.
    """

    def __init__(self, rows: Sequence[Rows], rooms: Sequence[Room]) -> None:
        """Raises `InvalidInputError` for rooms that one table can't describe."""
        _check(rooms)
        self.rows = tuple(rows)
        self.rooms = tuple(rooms)
        self.starts = tuple(accumulate((len(one) for one in rows), initial=0))
        self.longest = rounded(max(room.keys.shape[2] for room in rooms))
        self._programs: dict[tuple[int, int], torch.Tensor] = {}
        self._first_seen: dict[int, torch.Tensor] = {}
        self._first_parts: dict[int, torch.Tensor] = {}
        self._masks: dict[tuple[int | None, int], tuple[torch.Tensor | None, ...]] = {}

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def kv_heads(self) -> int:
        return self.rooms[0].keys.shape[1]

    @property
    def device(self) -> torch.device:
        return self.rooms[0].keys.device

    @cached_property
    def positions(self) -> torch.Tensor:
        """Of all rows, int64 [R]."""
        return joined(self.rows)

    @property
    def slots(self) -> torch.Tensor:
        return self.positions

    @cached_property
    def owners(self) -> torch.Tensor:
        """Which sequence each row belongs to, int64 [R]."""
        sizes = torch.tensor([len(one) for one in self.rows])
        return sent(torch.arange(len(self.rows)).repeat_interleave(sizes), self.device)

    @cached_property
    def table(self) -> torch.Tensor:
        """For the kernels, int64 [sequences, 6]: the first row, how many, `Room.entry`."""
        entries = [
            [start, len(one), *room.entry]
            for start, one, room in zip(self.starts, self.rows, self.rooms, strict=False)
        ]
        return sent(torch.tensor(entries, dtype=torch.int64), self.device)

    def take(self, other: SequenceRows) -> None:
        """Stand for other rows, in the same tensors. Both have one row of each sequence."""
        for kept, new in (
            (self.table, other.table),
            (self.positions, other.positions),
            (self.slots, other.slots),
            *((seen, other.first_seen(window)) for window, seen in self._first_seen.items()),
        ):
            kept.copy_(new)

    @cached_property
    def aligned(self) -> bool:
        """Whether the kernels can read the rooms."""
        return all(room.aligned for room in self.rooms)

    @cached_property
    def blocks(self) -> tuple[tuple[Room, Block], ...]:
        """The rows of each sequence, a few at a time, counted over all sequences."""
        return tuple(
            (room, Block(start + block.start, start + block.stop, block.first, block.last))
            for start, one, room in zip(self.starts, self.rows, self.rooms, strict=False)
            for block in one.blocks
        )

    def masks(
        self, window: int | None, group: int, dtype: torch.dtype
    ) -> Iterable[torch.Tensor | None]:
        """For each block what to add to its scores: nothing, or -inf where a row doesn't see a key.

        [group x block, keys], over the keys from `Block.seen_from` to its last row's own; None
        where all of its rows see all of them. group: query heads that share keys.
        """
        kept = self._masks.get((window, group))
        if kept is not None:
            return kept
        made = (self._mask(block, window, group, dtype) for _, block in self.blocks)
        cells = sum((b.stop - b.start) * (b.last + 1 - b.seen_from(window)) for _, b in self.blocks)
        if cells * group * dtype.itemsize > MASKS_KEPT:
            return made
        return self._masks.setdefault((window, group), tuple(made))

    def _mask(
        self, block: Block, window: int | None, group: int, dtype: torch.dtype
    ) -> torch.Tensor | None:
        if block.first == block.last:
            return None
        begin = block.seen_from(window)
        positions = self.positions[block.start : block.stop] - begin
        seen = visible(positions, block.last + 1 - begin, window)
        mask = torch.zeros(seen.shape, dtype=dtype, device=self.device)
        return mask.masked_fill_(~seen, -torch.inf).repeat(group, 1)

    def programs(self, flat: int, group: int) -> torch.Tensor:
        """Which rows a kernel's programs take, int64 [P, 2]: the sequence, the number of the block.

        flat: rows times the `group` heads that share keys, in a block. No block has rows of two.
        """
        if (flat, group) not in self._programs:
            blocks = [
                [number, block]
                for number, one in enumerate(self.rows)
                for block in range(-(-len(one) * group // flat))
            ]
            table = sent(torch.tensor(blocks, dtype=torch.int64), self.device)
            self._programs[flat, group] = table
        return self._programs[flat, group]

    def first_parts(self, splits: int) -> torch.Tensor:
        """Where the parts of each row begin, if all have so many, int64 [R + 1]."""
        if splits not in self._first_parts:
            ends = torch.arange(len(self) + 1, device=self.device) * splits
            self._first_parts[splits] = ends
        return self._first_parts[splits]

    def first_seen(self, window: int) -> torch.Tensor:
        """The first slot that each row sees through a window, int64 [R]."""
        if window not in self._first_seen:
            self._first_seen[window] = self._seen_from(window)
        return self._first_seen[window]

    def _seen_from(self, window: int) -> torch.Tensor:
        return (self.positions - window + 1).clamp_(min=0)


def rounded(count: int) -> int:
    """Up to a power of two, so that few layouts of kernels come up."""
    return 1 << (count - 1).bit_length()


def joined(rows: Sequence[Rows]) -> torch.Tensor:
    """The positions of several sequences' rows, int64 [R], in one transfer to the device."""
    if len(rows) == 1:
        return rows[0].on_device
    every = list(chain.from_iterable(one.positions for one in rows))
    return sent(torch.tensor(every, dtype=torch.int64), rows[0].device)


def _check(rooms: Sequence[Room]) -> None:
    kinds = {
        (kv.dtype, kv.device, *kv.shape[:2], kv.shape[3])
        for room in rooms
        for kv in (room.keys, room.values)
    }
    same = all(room.keys.shape == room.values.shape for room in rooms)
    if len(kinds) > 1 or not same:
        shapes = sorted({f"{room.keys.dtype} {tuple(room.keys.shape)}" for room in rooms})
        raise InvalidInputError(
            "Sequences of one pass need keys and values [L, Hkv, N, D] of one dtype and device, "
            f"of as many layers and heads; got {', '.join(shapes)}."
        )
