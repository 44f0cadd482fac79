"""Exact search: all vectors of a store are compared, while they fit into memory.

An index is approximate. Among nearly equal chunks, such as those of one template, most may not be
reachable in Chroma's graph. So it is searched only in stores that are too large for this.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from fusionrag_integrations.errors import CatalogRowError, StoreClosedError, StoreError
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.vector_index.base import VectorIndex
from fusionrag_integrations.store.vector_index.matrix import VectorMatrix
from fusionrag_integrations.store.vector_index.vectors import check_k, embedding_mismatch, unit_rows
from fusionrag_integrations.support.batches import in_batches
from fusionrag_integrations.support.forks import Forkable
from fusionrag_integrations.support.threads import Closable

logger = logging.getLogger(__name__)

MEMORY = 256 << 20  # the most bytes of float32 vectors to hold
_BATCH = 2_000  # vectors read at a time


class ExactSearch(Forkable, Closable):
    """Searches the chunks of a catalog by its vectors, which are held until it changes.

    Where they would take more than `MEMORY`, or one is damaged, the index is searched instead. The
    index also evaluates filters on metadata. Neither index nor catalog is closed with this.
    """

    def __init__(self, index: VectorIndex, catalog: Catalog) -> None:
        self._index = index
        self._catalog = catalog
        self._held: _Held | None = None
        self._closed = False
        self.in_child()
        super().__init__()

    def in_child(self) -> None:
        """A thread of the parent may have held the lock."""
        self._reading = Lock()

    def close(self) -> None:
        """Release the vectors. May be called again."""
        with self._reading:
            self._held, self._closed = None, True

    @property
    def is_exact(self) -> bool:
        """Whether all vectors are compared, instead of searching the index."""
        return self._vectors() is not None

    def search(
        self,
        vector: Sequence[float],
        k: int,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[tuple[str, float]]:
        """As `VectorIndex.search`. Raises `StoreClosedError` once this is closed."""
        check_k(k)
        vectors = self._vectors()
        if vectors is None:
            return self._index.search(vector, k, scopes, where)
        if vectors.ids and len(vector) != vectors.matrix.shape[1]:
            raise embedding_mismatch(
                self._catalog.store,
                f"its vectors have a dimension of {vectors.matrix.shape[1]}, got {len(vector)}",
            )
        matching = self._index.matching(where) if where else None
        return vectors.nearest(unit_rows([vector])[0], k, vectors.rows_of(scopes, matching))

    def neighbours(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        """For each chunk the `k` nearest others of its scope, nearest first.

        Raises `InvalidInputError` where k < 1, `StoreError` where the catalog has no vector of a
        chunk, and `StoreClosedError` once this is closed.
        """
        check_k(k)
        vectors = self._vectors()
        if vectors is None:
            return self._index_neighbours(chunk_ids, k)
        self._check_known(chunk_ids, vectors.rows)
        return vectors.neighbours(chunk_ids, k)

    def _index_neighbours(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        scopes = self._catalog.chunks.scope_by_id()
        for batch in in_batches(chunk_ids, _BATCH):
            vectors = self._catalog.vectors.of(batch)
            self._check_known(batch, vectors.keys() & scopes.keys())
            by_scope: defaultdict[str, list[str]] = defaultdict(list)
            for chunk_id in batch:
                by_scope[scopes[chunk_id]].append(chunk_id)
            for scope, names in by_scope.items():
                # One more than asked for, since a chunk's hits usually include itself.
                asked = [vectors[name] for name in names]
                for name, hits in zip(
                    names, self._index.search_many(asked, k + 1, [scope]), strict=True
                ):
                    found[name] = [other for other, _ in hits if other != name][:k]
        return found

    def _check_known(self, chunk_ids: Sequence[str], known: Iterable[str]) -> None:
        if missing := set(chunk_ids).difference(known):
            raise StoreError(
                f"The catalog {self._catalog.path} has no vector of chunk {min(missing)!r} "
                f"({len(missing)} missing); ingest its document again."
            )

    def _vectors(self) -> VectorMatrix | None:
        """The catalog's present vectors; None where the index is to be searched."""
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

    def _read(self, before: VectorMatrix | None) -> VectorMatrix | None:
        """Read the vectors; None where they take too much memory.

        before: those of an earlier revision, which are reused, since a chunk's vector never
        changes. Raises `CatalogRowError` for a damaged one.
        """
        scopes = self._catalog.chunks.scope_by_id()
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
        return VectorMatrix(tuple(ids), of_rows, numbers, matrix)

    def _parts(
        self, chunk_ids: Iterable[str], before: VectorMatrix | None
    ) -> Iterator[tuple[Sequence[str], np.ndarray]]:
        """Batches of chunk ids with their vectors of length 1: float32 [batch, dimensions]."""
        known = before.rows if before else {}
        by_source: dict[bool, list[str]] = {True: [], False: []}
        for chunk_id in chunk_ids:
            by_source[chunk_id in known].append(chunk_id)
        length = 0  # of a vector, in bytes
        if before and known:
            length = before.matrix[0].nbytes
            for names in in_batches(by_source[True], _BATCH):
                yield names, before.matrix[[known[chunk_id] for chunk_id in names]]
        for names in in_batches(by_source[False], _BATCH):
            packed = self._catalog.vectors.packed(names)
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
    vectors: VectorMatrix | None
