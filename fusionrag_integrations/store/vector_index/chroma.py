"""A `VectorIndex` in a directory, by Chroma.

Chroma is imported when a directory is opened, so that an engine with another index doesn't need it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionrag_integrations.documents.types import Chunk, MetadataValue
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.vector_index.chroma_client import ChromaClient
from fusionrag_integrations.store.vector_index.filters import chroma_filter, filterable_metadata
from fusionrag_integrations.store.vector_index.vectors import check_k, embedding_mismatch, unit_rows
from fusionrag_integrations.support.batches import in_batches
from fusionrag_integrations.support.threads import Closable

DATABASE_FILE = "chroma.sqlite3"  # Chroma's own, in the directory
_MOST = 1 << 30  # the most results that Chroma can be asked for
_AT_ONCE = 256  # vectors of one query
# Chroma orders equally near chunks differently each time that it opens a directory. So this many
# more are asked for, and ties sorted by id.
_TIES = 16


class ChromaIndex(Closable):
    """A `VectorIndex` in a directory, which is created if missing. Searches are approximate.

    A read-only directory, or one on a full disk, is searched in a temporary copy.
    """

    def __init__(self, directory: Path) -> None:
        """Open a directory. Raises `StoreError` where it can't be used."""
        self._client = ChromaClient(directory)

    def ids(self) -> set[str]:
        """See `VectorIndex.ids`."""
        with self._client.reading() as collection:
            return set(collection.get(include=[])["ids"])

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
            raise embedding_mismatch(
                self._client.directory.parent, f"it gave vectors of {sorted(lengths)} dimensions"
            )
        for part in self._client.batches(len(chunks)):
            batch, rows = chunks[part], unit_rows(vectors[part])
            nbytes = rows.nbytes + sum(len(chunk.text.encode()) for chunk in batch)
            with self._client.writing(nbytes) as collection:
                collection.upsert(
                    ids=[chunk.id for chunk in batch],
                    embeddings=list(rows),
                    documents=[chunk.text for chunk in batch],
                    metadatas=[filterable_metadata(chunk) for chunk in batch],
                )

    def remove(self, chunk_ids: Iterable[str]) -> None:
        """See `VectorIndex.remove`."""
        ids = list(chunk_ids)
        for part in self._client.batches(len(ids)):
            with self._client.writing() as collection:
                collection.delete(ids=ids[part])

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

    def _query(
        self,
        vectors: Sequence[Sequence[float]],
        k: int,
        scopes: Sequence[str] | None,
        where: Mapping[str, Any] | None,
    ) -> list[list[tuple[str, float]]]:
        check_k(k)
        with self._client.reading() as collection:
            if scopes is not None and not scopes:
                return [[] for _ in vectors]
            found = collection.query(
                query_embeddings=list(unit_rows(vectors)),
                n_results=min(k, _MOST) + _TIES,
                where=chroma_filter(scopes, where or None),
                include=["distances"],
            )
        return [
            sorted(
                ((name, 1.0 - distance) for name, distance in zip(*row, strict=True)),
                key=lambda hit: (-hit[1], hit[0]),
            )[:k]
            for row in zip(found["ids"], found["distances"], strict=True)
        ]

    def matching(self, where: Mapping[str, Any]) -> set[str]:
        """See `VectorIndex.matching`."""
        with self._client.reading() as collection:
            return set(collection.get(where=chroma_filter(where=where), include=[])["ids"])

    def entries(
        self, chunk_ids: Sequence[str]
    ) -> dict[str, tuple[Sequence[float], Mapping[str, MetadataValue]]]:
        """Vectors and metadata of chunks by id; ids that aren't in the index are left out."""
        with self._client.reading() as collection:
            rows = collection.get(ids=list(chunk_ids), include=["embeddings", "metadatas"])
        pairs = zip(rows["embeddings"], rows["metadatas"], strict=True)
        return dict(zip(rows["ids"], pairs, strict=True))

    def refresh(self) -> None:
        """See `VectorIndex.refresh`."""
        self._client.refresh()

    def close(self) -> None:
        """See `VectorIndex.close`."""
        self._client.close()
