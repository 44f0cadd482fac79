"""Which rows of a pass read which runs of chunks: each run is read once for all of them.

Requests that share chunks have them at different places, with different tokens of their own, but
the keys in memory are the same. What the rows of a run differ by is kept beside it: where the run
stands in the row's sequence, the rotation there, and which tokens are stale.

    readers of a run      row, its sequence, the number of the run among its segments
    a program's work      some rows, all of which read some runs; it leaves a part of each row

shapes    work int64 [W, 5]: the first of its users, how many users, the first of its chunks, how
          many chunks, its first use
          users int64 [U, 2]: row, part; chunks int64 [C, 5]: `Segment.run`
          uses int64 [X, 5], chunk by chunk, in each user by user: where it stands, addresses of
          cosines and sines, elements from layer to layer of those, address of what is stale in it
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.nn.functional import pad

from fusionrag_integrations.attention.rows import sent
from fusionrag_integrations.attention.segments import PrivateRows, Segment, SharedSequence


@dataclass(frozen=True, slots=True)
class Reader:
    """A row that reads a run, its sequence, and which of its segments the run is."""

    row: int
    sequence: SharedSequence
    number: int

    @property
    def segment(self) -> Segment:
        return self.sequence.segments.segments[self.number]

    @property
    def use(self) -> list[int]:
        """As in the table of uses."""
        segments, start = self.sequence.segments, self.segment.start
        stale = self.sequence.stale.data_ptr() + start
        return [start, *segments.rotation_entry(self.number), stale]


def runs_of(rows: PrivateRows) -> list[tuple[Reader, ...]]:
    """Every run of chunks once, as its readers."""
    readers: defaultdict[tuple[int, ...], list[Reader]] = defaultdict(list)
    for start, one, sequence in zip(rows.starts, rows.rows, rows.sequences, strict=False):
        for number, run in enumerate(sequence.segments.runs):
            readers[run] += [Reader(start + row, sequence, number) for row in range(len(one))]
    return list(map(tuple, readers.values()))


@dataclass(frozen=True, slots=True, eq=False)
class SharedWork:
    """What programs take, in tables on the device. first_parts: see `online_softmax`; parts: how
    many there are in all; most_users: of a program.
    """

    work: torch.Tensor
    users: torch.Tensor
    chunks: torch.Tensor
    uses: torch.Tensor
    first_parts: torch.Tensor
    parts: int
    most_users: int

    @property
    def size(self) -> tuple[int, int]:
        """How much work and how many uses there are."""
        return len(self.work), len(self.uses)

    def padded(self, work: int, uses: int) -> SharedWork:
        """The same with room for more, where nothing is to do: work without users."""
        users = work * self.most_users

        def longer(table: torch.Tensor, rows: int) -> torch.Tensor:
            return pad(table, (0, 0, 0, rows - len(table)))

        return SharedWork(
            work=longer(self.work, work),
            users=longer(self.users, users),
            chunks=longer(self.chunks, uses),
            uses=longer(self.uses, uses),
            first_parts=self.first_parts.clone(),
            parts=self.parts - len(self.users) + users,
            most_users=self.most_users,
        )

    def take(self, other: SharedWork) -> None:
        """Do other work from now on, in the same tensors, which have room for it."""
        padded = other.padded(*self.size)
        for name in ("work", "users", "chunks", "uses", "first_parts"):
            getattr(self, name).copy_(getattr(padded, name))


def shared_work(rows: PrivateRows, most_users: int, programs: int, splits: int) -> SharedWork:
    """The work over all runs of the rows.

    most_users: rows of a program. programs: how many are wanted, in all; a program takes several
    runs that the same rows read, where there are more. splits: parts of each row that come first,
    of its private tokens.
    """
    together: defaultdict[tuple[int, ...], list[tuple[Reader, ...]]] = defaultdict(list)
    for readers in runs_of(rows):
        for first in range(0, len(readers), most_users):
            some = readers[first : first + most_users]
            together[tuple(reader.row for reader in some)].append(some)
    each = -(-sum(map(len, together.values())) // max(1, programs))
    taken = [
        runs[first : first + each]
        for runs in together.values()
        for first in range(0, len(runs), each)
    ]
    counts = [splits] * len(rows)
    work: list[list[int]] = []
    readers_of: list[tuple[int, int]] = []
    chunks: list[tuple[int, ...]] = []
    uses: list[list[int]] = []
    for runs in taken:
        work.append([len(readers_of), len(runs[0]), len(chunks), len(runs), len(uses)])
        for reader in runs[0]:
            readers_of.append((reader.row, counts[reader.row]))
            counts[reader.row] += 1
        for readers in runs:
            chunks.append(readers[0].segment.run)
            uses += [reader.use for reader in readers]
    first_parts = list(accumulate(counts, initial=0))
    users = [[row, first_parts[row] + part] for row, part in readers_of]

    def table(entries: Sequence[object]) -> torch.Tensor:
        return sent(torch.tensor(entries, dtype=torch.int64), rows.device)

    return SharedWork(
        work=table(work),
        users=table(users),
        chunks=table(chunks),
        uses=table(uses),
        first_parts=table(first_parts),
        parts=first_parts[-1],
        most_users=most_users,
    )
