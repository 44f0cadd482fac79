"""What KV may be fused behind, by name: the default, its parts, and ways in which it can go wrong.

default       same-document predecessors nearest, then similar chunks (`neighbours.py`)
reversed      the same chunks in the opposite order
similar       similar chunks only, as in the paper
predecessors  same-document predecessors only
missing       similar chunks of other documents: what a chunk refers back to is not among them
wrong         chunks of other documents, drawn at random
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.ingest.neighbours import Candidates, NeighbourPolicy, Neighbours
from fusionrag_integrations.store.catalog import Catalog

MakePolicy = Callable[[FusionEngine], NeighbourPolicy]

WRONG = 4  # as many as in the trial that showed what wrong neighbours do


def make_policy(name: str) -> MakePolicy:
    """A policy by its name, or by its name and how many neighbours at most, as in `similar:5`.

    Raises `InvalidInputError`, which lists the known names.
    """
    kind, _, number = name.partition(":")
    if kind not in _POLICIES or (number and not number.isdecimal()):
        raise InvalidInputError(
            f"Unknown neighbours {name!r}; known are {', '.join(_POLICIES)}, each with a number "
            "behind a colon if you like."
        )
    default = WRONG if kind == "wrong" else Neighbours().count
    return _POLICIES[kind](int(number) if number else default)


@dataclass(frozen=True, slots=True)
class _Reversed:
    count: int

    @property
    def similar(self) -> int:
        return self._usual.similar

    @property
    def predecessors(self) -> int:
        return self._usual.predecessors

    @property
    def _usual(self) -> Neighbours:
        return _usual(self.count)

    def choose(self, candidates: Candidates) -> list[ChunkRecord]:
        return self._usual.choose(candidates)[::-1]


@dataclass(frozen=True, slots=True)
class _Missing:
    count: int
    predecessors: int = 0

    @property
    def similar(self) -> int:
        return 2 * self.count  # those of the same document are passed over

    def choose(self, candidates: Candidates) -> list[ChunkRecord]:
        others = _of_other_documents(candidates.record, candidates.similar)
        return Neighbours(self.count, 0).choose(
            replace(candidates, predecessors=(), similar=others)
        )


class _Wrong:
    similar = 0
    predecessors = 0

    def __init__(self, catalog: Catalog, count: int) -> None:
        self._catalog = catalog
        self._count = count

    @cached_property
    def _all(self) -> list[ChunkRecord]:
        return list(self._catalog.chunks.records(self._catalog.chunks.ids()).values())

    def choose(self, candidates: Candidates) -> list[ChunkRecord]:
        draw = random.Random(candidates.record.chunk.id)
        others = _of_other_documents(candidates.record, self._all)
        drawn = draw.sample(others, min(self._count, len(others)))
        return Neighbours(self._count, 0).choose(
            replace(candidates, predecessors=(), similar=drawn)
        )


def _of_other_documents(
    record: ChunkRecord, candidates: Sequence[ChunkRecord]
) -> list[ChunkRecord]:
    return [c for c in candidates if c.chunk.document_id != record.chunk.document_id]


def _usual(count: int) -> Neighbours:
    return Neighbours(count, min(Neighbours().predecessors, count))


_POLICIES: dict[str, Callable[[int], MakePolicy]] = {
    "default": lambda count: lambda engine: _usual(count),
    "reversed": lambda count: lambda engine: _Reversed(count),
    "similar": lambda count: lambda engine: Neighbours(count, 0),
    "predecessors": lambda count: lambda engine: Neighbours(count, count),
    "missing": lambda count: lambda engine: _Missing(count),
    "wrong": lambda count: lambda engine: _Wrong(engine.store.catalog, count),
}
