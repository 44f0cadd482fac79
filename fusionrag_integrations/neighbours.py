"""Which chunks stand before a chunk when its KV is fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.inputs import check_fields
from fusionrag_integrations.types import ChunkRecord

MAX_NEIGHBOUR_TOKENS = 4_096
SPARE = 2  # candidates beyond those that are wanted: predecessors and equal texts are among them


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a chunk's neighbours are chosen from.

    predecessors: in document order. similar: nearest first. max_tokens: of all neighbours together.
    """

    record: ChunkRecord
    predecessors: Sequence[ChunkRecord]
    similar: Sequence[ChunkRecord]
    max_tokens: int


@runtime_checkable
class NeighbourPolicy(Protocol):
    """Chooses a chunk's neighbours from candidates, of which it says how many it wants."""

    @property
    def similar(self) -> int:
        """How many of the nearest chunks in the index to look up."""
        ...

    @property
    def predecessors(self) -> int:
        """How many of the chunks right before it in its document to look up."""
        ...

    def choose(self, candidates: Candidates) -> list[ChunkRecord]:
        """The neighbours, in the order in which they stand before the chunk."""
        ...


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Predecessors of the same document, then the most similar chunks, at most `count` in all.

    count: the paper's n, where it is 10. A chunk's KV is nearest to what a prompt makes of it where
    as much text stands before it at ingest as in the prompt, which has about 4 to 10 chunks, half
    of them before an average one. Predecessors stand last, because what a chunk refers back to is
    there; before them the similar ones, the nearest closest to the chunk.
    """

    count: int = 4
    predecessors: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.predecessors <= self.count:
            raise InvalidInputError(
                f"Neighbours are {self.predecessors} predecessors of {self.count} in all; give "
                "numbers from 0 on, and no more predecessors than neighbours."
            )

    @property
    def similar(self) -> int:
        return self.count + SPARE if self.count > self.predecessors else 0

    def choose(self, candidates: Candidates) -> list[ChunkRecord]:
        """Equal texts count once. Beyond `max_tokens`, the least similar are left out first."""
        taken = {candidates.record.chunk.text}
        room = candidates.max_tokens
        kept: list[ChunkRecord] = []  # most wanted first
        for candidate in [*reversed(candidates.predecessors), *candidates.similar]:
            tokens = len(candidate.encoded.token_ids)
            if candidate.chunk.text in taken or tokens > room or len(kept) == self.count:
                continue
            taken.add(candidate.chunk.text)
            room -= tokens
            kept.append(candidate)
        return kept[::-1]


DEFAULT_NEIGHBOURS = Neighbours()
