"""A `VectorIndex` in a collection of Chroma's, wherever that is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.vector_index.chroma_connection import ChromaConnection
from fusionrag_integrations.store.vector_index.entries import OwnEntries
from fusionrag_integrations.store.vector_index.vectors import check_k, unit_rows
from fusionrag_integrations.support.batches import in_batches
from fusionrag_integrations.support.threads import Closable

_PAGE = 50_000  # ids of one answer: about 2 MB
_AT_ONCE = 256  # vectors of one query
# Chroma orders equally near chunks differently each time that it opens a directory. So this many
# more are asked for, and ties sorted by id.
_TIES = 16


class CollectionIndex(Closable):
    """A `VectorIndex` in a collection, of which it sees the store's entries only.

    Searches are approximate.
    """

    def __init__(self, connection: ChromaConnection) -> None:
        """connection: becomes this one's to close."""
        self._connection = connection

    def ids(self, among: Sequence[str] | None = None) -> set[str]:
        """See `VectorIndex.ids`."""
        with self._connection.reading() as (collection, entries):
            if among is None:
                return self._ids_where(collection, entries, entries.condition())
            found: set[str] = set()
            for batch in in_batches(entries.names(among), self._connection.limits().written):
                found |= _chunk_ids(collection.get(ids=batch, include=[])["ids"], entries)
            return found

    def holds(self, count: int) -> bool:
        """See `VectorIndex.holds`. Fetches one id."""
        if count < 1:
            return True
        with self._connection.reading() as (collection, entries):
            rows = collection.get(where=entries.condition(), limit=1, offset=count - 1, include=[])
            return bool(rows["ids"])

    def add(self, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]) -> None:
        """See `VectorIndex.add`."""
        if len(chunks) != len(vectors):
            raise InvalidInputError(
                f"{len(chunks)} chunks were given with {len(vectors)} embeddings; "
                "give one embedding a chunk."
            )
        if len({chunk.id for chunk in chunks}) != len(chunks):
            raise InvalidInputError("A chunk id comes twice in one call; give each chunk once.")
        lengths = {len(vector) for vector in vectors}
        if len(lengths) > 1:
            reason = f"it gave vectors of {sorted(lengths)} dimensions"
            raise self._connection.mismatch(reason)
        for part in self._parts(len(chunks)):
            batch, rows = chunks[part], unit_rows(vectors[part])
            nbytes = rows.nbytes + sum(len(chunk.text.encode()) for chunk in batch)
            with self._connection.writing(nbytes) as (collection, entries):
                entries.check(rows)
                collection.upsert(
                    ids=entries.names(chunk.id for chunk in batch),
                    embeddings=list(rows),
                    documents=[chunk.text for chunk in batch],
                    metadatas=[entries.metadata(chunk) for chunk in batch],
                )

    def remove(self, chunk_ids: Iterable[str]) -> None:
        """See `VectorIndex.remove`."""
        ids = list(chunk_ids)
        for part in self._parts(len(ids)):
            with self._connection.writing() as (collection, entries):
                collection.delete(ids=entries.names(ids[part]))

    def search(
        self,
        vector: Sequence[float],
        k: int,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[tuple[str, float]]:
        """See `VectorIndex.search`."""
        return self._query([vector], k, scopes, where)[0]

    def search_many(
        self, vectors: Sequence[Sequence[float]], k: int, scopes: Sequence[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        """See `VectorIndex.search_many`. The filter is evaluated once for many vectors."""
        found: list[list[tuple[str, float]]] = []
        for batch in in_batches(vectors, _AT_ONCE):
            found += self._query(batch, k, scopes, None)
        return found

    def matching(self, where: Mapping[str, Any]) -> set[str]:
        """See `VectorIndex.matching`."""
        with self._connection.reading() as (collection, entries):
            return self._ids_where(collection, entries, entries.condition(where=where))

    def refresh(self) -> None:
        """See `VectorIndex.refresh`."""
        self._connection.refresh()

    def close(self) -> None:
        """See `VectorIndex.close`."""
        self._connection.close()

    def _query(
        self,
        vectors: Sequence[Sequence[float]],
        k: int,
        scopes: Sequence[str] | None,
        where: Mapping[str, Any] | None,
    ) -> list[list[tuple[str, float]]]:
        check_k(k)
        questions = unit_rows(vectors)
        with self._connection.reading() as (collection, entries):
            if scopes is not None and not scopes:
                return [[] for _ in vectors]
            found = collection.query(
                query_embeddings=list(questions),
                n_results=min(k + _TIES, self._connection.limits().answered),
                where=entries.condition(scopes, where or None),
                include=["distances"],
            )
        hits: list[list[tuple[str, float]]] = []
        for question, *row in zip(questions, found["ids"], found["distances"], strict=True):
            is_zeros = not question.any()
            scored = [
                (chunk_id, entries.score(distance, is_zeros))
                for name, distance in zip(*row, strict=True)
                if (chunk_id := entries.chunk_id(name)) is not None
            ]
            hits.append(sorted(scored, key=lambda hit: (-hit[1], hit[0]))[:k])
        return hits

    def _ids_where(
        self, collection: Any, entries: OwnEntries, condition: Mapping[str, Any] | None
    ) -> set[str]:
        found: set[str] = set()
        size, offset = min(_PAGE, self._connection.limits().answered), 0
        while True:
            page = collection.get(where=condition, limit=size, offset=offset, include=[])["ids"]
            found |= _chunk_ids(page, entries)
            offset += len(page)
            if len(page) < size:
                return found

    def _parts(self, count: int) -> Iterator[slice]:
        """Slices of `count` entries, of the size that Chroma accepts at once."""
        size = self._connection.limits().written
        return (slice(start, start + size) for start in range(0, count, size))


def _chunk_ids(names: Iterable[str], entries: OwnEntries) -> set[str]:
    return {known for name in names if (known := entries.chunk_id(name)) is not None}
