"""Which chunks precede a chunk when its KV is fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.inputs import check_fields

MAX_NEIGHBOUR_TOKENS = 4_096
SPARE = 2  # candidates beyond those wanted, since some are predecessors or have equal texts


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
    """Chooses a chunk's neighbours from as many candidates as it asks for."""

    @property
    def similar(self) -> int:
        """How many of the nearest chunks in the index to look up."""
        ...

    @property
    def predecessors(self) -> int:
        """How many of the chunks directly before it in its document to look up."""
        ...

    def choose(self, candidates: Candidates) -> list[ChunkRecord]:
        """The neighbours, in the order in which they precede the chunk."""
        ...


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Predecessors of the same document, then the most similar chunks, at most `count` in all.

    count: the paper's n, which is 10 there. Stored KV is closest to that in a prompt if as much
    text precedes the chunk at ingest as in the prompt, which has about 4 to 10 chunks, half of them
    before an average one. Predecessors come last, because a chunk refers back to them; before them
    the similar ones, the nearest closest to the chunk.
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
        """Equal texts count once. Beyond `max_tokens`, the least similar are dropped first."""
        taken = {candidates.record.chunk.text}
        room = candidates.max_tokens
        chosen: list[ChunkRecord] = []  # most wanted first
        for candidate in [*reversed(candidates.predecessors), *candidates.similar]:
            tokens = len(candidate.encoded.token_ids)
            if candidate.chunk.text in taken or tokens > room or len(chosen) == self.count:
                continue
            taken.add(candidate.chunk.text)
            room -= tokens
            chosen.append(candidate)
        return chosen[::-1]


DEFAULT_NEIGHBOURS = Neighbours()
