"""Chunk ids by similarity, exactly: all vectors of a store are compared, while they fit in memory.

Chroma's graph is approximate. Of chunks that are nearly alike, as those of one template are, there
may be no way in it to most. So it is searched only in stores that are too large for this.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from fusionrag_integrations.catalog import Catalog
from fusionrag_integrations.errors import CatalogRowError, StoreClosedError, StoreError
from fusionrag_integrations.forks import Forkable
from fusionrag_integrations.index import (
    ChunkIndex,
    check_k,
    of_another_embedding,
    unit_rows,
)
from fusionrag_integrations.threads import Closable
from fusionrag_integrations.types import Chunk

logger = logging.getLogger(__name__)

MEMORY = 256 << 20  # bytes of vectors, as float32, that are held at most
_ROUNDING = 1e-5  # by which equal scores may differ in a matrix product
_READ = 2_000  # vectors that are read at a time
_AT_ONCE = 64  # chunks whose neighbours are looked for together


class ExactSearch(Forkable, Closable):
    """The index of a store: a `ChunkIndex` whose searches are exact where they can be.

    Vectors come from the catalog, and are held until it changes. Where they would take more than
    `MEMORY`, or one is damaged, the graph is searched instead. What chunks a filter on metadata
    holds for is the index's to tell in any case.
    """

    def __init__(self, index: ChunkIndex, catalog: Catalog) -> None:
        self._index = index
        self._catalog = catalog
        self._held: _Held | None = None
        self._closed = False
        self.renew()
        super().__init__()

    def renew(self) -> None:
        """A thread of the parent may be reading just then."""
        self._reading = Lock()

    def __len__(self) -> int:
        return len(self._index)

    def ids(self) -> set[str]:
        """The ids of all chunks in the index."""
        return self._index.ids()

    def add(self, chunks: Sequence[Chunk], embeddings: Sequence[Sequence[float]]) -> None:
        """As `ChunkIndex.add`. Exact searches find them once the catalog has their vectors."""
        self._index.add(chunks, embeddings)

    def remove(self, chunk_ids: Iterable[str]) -> None:
        """As `ChunkIndex.remove`."""
        self._index.remove(chunk_ids)

    def refresh(self) -> None:
        """As `ChunkIndex.refresh`; of the catalog's vectors the present ones are always used."""
        self._index.refresh()

    def close(self) -> None:
        """Close the index, not the catalog."""
        with self._reading:
            self._held, self._closed = None, True
        self._index.close()

    @property
    def is_exact(self) -> bool:
        """Whether all vectors are compared, and the graph isn't needed."""
        return self._vectors() is not None

    def search(
        self,
        embedding: Sequence[float],
        k: int,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[tuple[str, float]]:
        """As `ChunkIndex.search`."""
        check_k(k)
        vectors = self._vectors()
        if vectors is None:
            return self._index.search(embedding, k, scopes, where)
        wanted = self._checked(embedding, vectors)
        matching = self._index.matching(where) if where else None
        return vectors.nearest(wanted, k, vectors.rows_of(scopes, matching))

    def neighbours_many(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        """As `ChunkIndex.neighbours_many`."""
        check_k(k)
        vectors = self._vectors()
        if vectors is None:
            return self._index.neighbours_many(chunk_ids, k)
        if missing := set(chunk_ids).difference(vectors.rows):
            raise StoreError(
                f"The catalog {self._catalog.path} has no vector of chunk {min(missing)!r} "
                f"({len(missing)} missing); ingest its document again."
            )
        return vectors.neighbours(chunk_ids, k)

    def _checked(self, embedding: Sequence[float], vectors: _Vectors) -> np.ndarray:
        """A question's vector, as one to compare with these."""
        if vectors.ids and len(embedding) != vectors.matrix.shape[1]:
            raise of_another_embedding(
                self._catalog.store,
                f"its vectors have a dimension of {vectors.matrix.shape[1]}, got {len(embedding)}",
            )
        unit: np.ndarray = unit_rows([embedding])[0]
        return unit

    def _vectors(self) -> _Vectors | None:
        """The catalog's, as it is now; None where the graph is to be searched."""
        with self._reading:
            if self._closed:
                raise StoreClosedError.of(self._catalog.store)
            revision = self._catalog.revision
            held = self._held
            if held is None or held.revision != revision:
                try:
                    vectors = self._read(held.vectors if held else None)
                except CatalogRowError as error:
                    logger.warning("Searches go by Chroma's graph, and may miss chunks: %s", error)
                    vectors = None
                held = self._held = _Held(revision, vectors)
        return held.vectors

    def _read(self, before: _Vectors | None) -> _Vectors | None:
        """before: those of an earlier revision, which are kept: no chunk's vector ever changes."""
        scopes = self._catalog.chunk_scopes()
        ids: list[str] = []
        matrix = np.zeros((0, 0), np.float32)
        for names, part in self._parts(scopes, before):
            if not ids:
                if len(scopes) * part[0].nbytes > MEMORY:
                    return None
                matrix = np.empty((len(scopes), part.shape[1]), np.float32)
            matrix[len(ids) : len(ids) + len(names)] = part
            ids += names
        if missing := len(scopes) - len(ids):
            raise CatalogRowError(
                f"The catalog {self._catalog.path} has lost the vectors of {missing} chunks. "
                "`fusionrag repair` takes them from the documents."
            )
        numbers = {scope: number for number, scope in enumerate(dict.fromkeys(scopes.values()))}
        of_rows = np.array([numbers[scopes[chunk_id]] for chunk_id in ids], int)
        return _Vectors(tuple(ids), of_rows, numbers, matrix)

    def _parts(
        self, chunk_ids: Iterable[str], before: _Vectors | None
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Chunks with their vectors, of length 1. Raises `CatalogRowError` for a damaged one."""
        known = before.rows if before else {}
        by_source: dict[bool, list[str]] = {True: [], False: []}
        for chunk_id in chunk_ids:
            by_source[chunk_id in known].append(chunk_id)
        length = 0
        if before and known:
            length = before.matrix[0].nbytes
            for names in _batches(by_source[True]):
                yield names, before.matrix[[known[chunk_id] for chunk_id in names]]
        for names in _batches(by_source[False]):
            packed = self._catalog.packed_vectors(names)
            for chunk_id, vector in packed.items():
                if len(vector) != (length := length or len(vector)):
                    raise CatalogRowError(
                        f"The catalog {self._catalog.path} is damaged: the vector of chunk "
                        f"{chunk_id!r} is longer or shorter than others; ingest its document again."
                    )
            if packed:
                numbers = np.frombuffer(b"".join(packed.values()), "<f4")
                yield list(packed), unit_rows(numbers.reshape(len(packed), -1))


@dataclass(frozen=True, slots=True)
class _Held:
    revision: int
    vectors: _Vectors | None


@dataclass(frozen=True)
class _Vectors:
    """Vectors of length 1: matrix is float32 [chunks, dimensions].

    ids: of the rows. scopes: the number of each row's. numbers: of the scopes, by their names.
    """

    ids: tuple[str, ...]
    scopes: np.ndarray
    numbers: Mapping[str, int]
    matrix: np.ndarray

    @cached_property
    def rows(self) -> dict[str, int]:
        """Where each chunk stands."""
        return {chunk_id: row for row, chunk_id in enumerate(self.ids)}

    def rows_of(self, scopes: Sequence[str] | None, among: set[str] | None) -> np.ndarray:
        """The rows of these scopes, and of these chunks, ascending; None: of all."""
        kept = np.ones(len(self.ids), bool)
        if scopes is not None:
            wanted = [self.numbers[scope] for scope in scopes if scope in self.numbers]
            kept &= np.isin(self.scopes, wanted)
        if among is not None:
            kept &= np.array([chunk_id in among for chunk_id in self.ids], bool)
        return np.flatnonzero(kept)

    def nearest(self, vector: np.ndarray, k: int, rows: np.ndarray) -> list[tuple[str, float]]:
        """The `k` nearest of these rows with their scores, best first, equal ones by id.

        vector: float32 [dimensions], of length 1.
        """
        return self._best(vector, (self.matrix @ vector)[rows], k, rows) if self.ids else []

    def neighbours(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        """For each chunk the `k` nearest others of its scope, nearest first."""
        found: dict[str, list[str]] = {}
        own = np.array([self.rows[chunk_id] for chunk_id in dict.fromkeys(chunk_ids)], int)
        for scope in np.unique(self.scopes[own]):
            rows = np.flatnonzero(self.scopes == scope)
            others = self.matrix[rows].T
            of_scope = own[self.scopes[own] == scope]
            for start in range(0, len(of_scope), _AT_ONCE):
                batch = of_scope[start : start + _AT_ONCE]
                for row, scores in zip(batch, self.matrix[batch] @ others, strict=True):
                    best = self._best(self.matrix[row], scores, k + 1, rows)
                    name = self.ids[row]
                    found[name] = [other for other, _ in best if other != name][:k]
        return found

    def _best(
        self, vector: np.ndarray, scores: np.ndarray, k: int, rows: np.ndarray
    ) -> list[tuple[str, float]]:
        """scores: of the rows, nearly; the best are computed anew, equal vectors alike."""
        if not (k := min(k, len(rows))):
            return []
        least = np.partition(scores, -k)[-k]
        near = rows[scores >= least - _ROUNDING]
        exact = (self.matrix[near] * vector).sum(axis=1)
        hits = [(self.ids[row], float(score)) for row, score in zip(near, exact, strict=True)]
        return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k]


def _batches(ids: Sequence[str]) -> Iterator[list[str]]:
    return (list(ids[start : start + _READ]) for start in range(0, len(ids), _READ))
