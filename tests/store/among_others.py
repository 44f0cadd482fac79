"""An index in a collection where others have entries, which it must neither see nor change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any

from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.store.vector_index.base import VectorIndex
from fusionrag_integrations.store.vector_index.filters import filterable_metadata
from fusionrag_integrations.store.vector_index.vectors import unit_rows


class IndexOfOthers:
    """`index`, where each chunk that is added is also there as another store's, and a program's.

    That they are still there is checked after each removal, and with `ids`.
    """

    def __init__(self, index: VectorIndex, other: VectorIndex, collection: Any) -> None:
        self._index = index
        self._other = other
        self._collection = collection
        self._ids: set[str] = set()
        self._lock = Lock()

    def ids(self, among: Sequence[str] | None = None) -> set[str]:
        self._check()
        return self._index.ids(among)

    def holds(self, count: int) -> bool:
        return self._index.holds(count)

    def add(self, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]) -> None:
        self._index.add(chunks, vectors)
        kept = [pair for pair in zip(chunks, vectors, strict=True) if any(pair[1])]
        if not kept:
            return
        with self._lock:
            self._other.add(*zip(*kept, strict=True))
            self._collection.upsert(
                ids=[f"theirs {chunk.id}" for chunk, _ in kept],
                embeddings=list(unit_rows([vector for _, vector in kept])),
                documents=["their text"] * len(kept),
                metadatas=[{**filterable_metadata(chunk), "theirs": True} for chunk, _ in kept],
            )
            self._ids |= {f"theirs {chunk.id}" for chunk, _ in kept}

    def remove(self, chunk_ids: Iterable[str]) -> None:
        self._index.remove(chunk_ids)
        self._check()

    def search(
        self,
        vector: Sequence[float],
        k: int,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[tuple[str, float]]:
        return self._index.search(vector, k, scopes, where)

    def search_many(
        self, vectors: Sequence[Sequence[float]], k: int, scopes: Sequence[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        return self._index.search_many(vectors, k, scopes)

    def matching(self, where: Mapping[str, Any]) -> set[str]:
        return self._index.matching(where)

    def refresh(self) -> None:
        self._index.refresh()

    def close(self) -> None:
        self._index.close()

    def _check(self) -> None:
        """Others' entries are all there."""
        with self._lock:
            theirs = self._collection.get(where={"theirs": True}, include=[])["ids"]
            assert set(theirs) == self._ids
            assert {f"theirs {chunk_id}" for chunk_id in self._other.ids()} == self._ids
