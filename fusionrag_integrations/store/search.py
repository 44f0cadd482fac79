"""Question -> nearest chunks, with handles to their KV."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionrag_integrations.documents.embedding import Embedder, as_vector
from fusionrag_integrations.documents.handles import SearchHit
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import InvalidInputError, StoreError
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.catalog.database import batches
from fusionrag_integrations.store.layout import INDEX_DIRECTORY
from fusionrag_integrations.store.vector_index.base import VectorIndex
from fusionrag_integrations.store.vector_index.exact import ExactSearch
from fusionrag_integrations.store.vector_index.filling import restore_vectors
from fusionrag_integrations.support.inputs import check_text, shown

logger = logging.getLogger(__name__)

SEARCHES = 10  # the most attempts, where documents change during each one


class Search:
    """Searches a store, following changes of its documents by any process."""

    def __init__(
        self,
        path: Path,
        catalog: Catalog,
        index: VectorIndex,
        embedder: Embedder,
        fill_index: bool,
    ) -> None:
        """fill_index: as in `Store`."""
        self._path = path
        self._catalog = catalog
        self._index = index
        self._exact = ExactSearch(index, catalog)
        self._embedder = embedder
        self._fill_index = fill_index
        self._seen = catalog.revision  # when the index was last read or written
        self._is_whole = False  # whether the index is known to have all chunks
        self._filled: set[str] = set()  # chunks that it is known to have, if it is filled

    def close(self) -> None:
        """Release the vectors that are held; index and catalog stay open."""
        self._exact.close()

    def nearest(
        self,
        vector: Iterable[float],
        k: int,
        scopes: Sequence[str] | None,
        where: Mapping[str, Any] | None,
    ) -> list[SearchHit]:
        """See `Store.nearest`."""
        vector = as_vector(vector)
        if where is not None and not isinstance(where, Mapping):
            raise InvalidInputError(f"The filter {shown(where)} can't be used: give a mapping.")
        for _ in range(SEARCHES):
            revision = self._catalog.revision
            self.follow()
            try:
                self._check_index_for(where)
                hits = self._hits(vector, k, scopes, where)
            except StoreError:  # another process may have changed the index just now
                self._index.refresh()
                self._check_index_for(where)
                hits = self._hits(vector, k, scopes, where)
            # Chunks replaced between the look-ups in index and catalog are missed, so try again.
            if self._catalog.revision == revision:
                break
        return hits

    def embed_question(self, question: str) -> list[float]:
        """The vector of a question. Raises `InvalidInputError` for an empty one."""
        if not isinstance(question, str):
            raise InvalidInputError(f"The question is {shown(question)}; give a string.")
        if not question.strip():
            raise InvalidInputError("The question is empty.")
        check_text("The question", question)
        return self._embedder.embed_query(question)

    def similar(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        """The `k` chunks most similar to each chunk, of its own scope, nearest first."""
        if k == 0:
            return {chunk_id: [] for chunk_id in chunk_ids}
        return self._exact.neighbours(chunk_ids, k)

    def similar_to(self, chunk: Chunk, k: int) -> list[str]:
        """The `k` chunks of its scope most similar to a chunk that isn't in the index."""
        (vector,) = self._embedder.embed_documents([chunk.embedding_text])
        return [hit.chunk.id for hit in self.nearest(vector, k, [chunk.scope], None)]

    def follow(self) -> None:
        """Let the index read the changes of other processes.

        The first time, check that it has all chunks, and raise `StoreError` if not. Opening the
        store doesn't, since a process that has used Chroma can't be forked.
        """
        if not self._is_whole:
            self._check_whole()
        revision = self._catalog.revision
        if revision != self._seen:
            self._index.refresh()
            if self._fill_index:
                self._fill()
            self._seen = revision

    def note_change(self) -> int:
        """Note that this process has changed the index, which needn't be read again.

        Returns the catalog's revision.
        """
        self._seen = self._catalog.revision
        return self._seen

    def _hits(
        self,
        vector: Sequence[float],
        k: int,
        scopes: Sequence[str] | None,
        where: Mapping[str, Any] | None,
    ) -> list[SearchHit]:
        wanted = k
        while True:
            nearest = self._exact.search(vector, wanted, scopes, where)
            records = self._catalog.chunks.records([i for i, _ in nearest], tokens=False)
            # An interrupted ingest may leave chunks in the index that aren't in the catalog.
            hits = [
                SearchHit(records[chunk_id].chunk, score, records[chunk_id].handle)
                for chunk_id, score in nearest
                if chunk_id in records
            ]
            if len(hits) >= k or len(nearest) < wanted:
                break
            wanted *= 2
        if not nearest and not self._catalog.counts().chunks:
            logger.warning("The store at %s holds no chunks: ingest documents first.", self._path)
        return hits[:k]

    def _check_index_for(self, where: Mapping[str, Any] | None) -> None:
        """Fill an index that a search needs and that has lost chunks, as a server's may."""
        asked = self._fill_index and (where or not self._exact.is_exact)
        if asked and not self._index.holds(self._catalog.chunks.count()):
            self._filled = set()
            self._fill()

    def _check_whole(self) -> None:
        """The index may have more chunks: they are added to it first, and removed last."""
        if self._fill_index:
            self._fill()
        else:
            self._wait_for_all()
        self._is_whole = True

    def _wait_for_all(self) -> None:
        """Another process may be adding some. Raises `StoreError` where none is."""
        while not self._has_all():
            revision = self._catalog.revision
            self._index.refresh()
            if not self._has_all() and self._catalog.revision == revision:
                raise index_lost_chunks(self._path, self._catalog)

    def _fill(self) -> None:
        """Add chunks that the index lacks; the next ingest embeds those without a vector.

        It is asked for chunks that are new in the catalog, rather than for all, which may be many.
        """
        chunk_ids = set(self._catalog.chunks.ids())
        new = sorted(chunk_ids - self._filled)
        missing = sorted(set(new) - self._index.ids(new if self._filled else None))
        for batch in batches(missing):
            restore_vectors(self._catalog, self._index, batch)
        self._filled = chunk_ids

    def _has_all(self) -> bool:
        return self._index.holds(self._catalog.chunks.count())


def index_lost_chunks(path: Path, catalog: Catalog) -> StoreError:
    """The error for an index that lacks chunks of the catalog."""
    return StoreError(
        f"The index in {path / INDEX_DIRECTORY} has lost chunks: the catalog has "
        f"{catalog.counts().chunks}. `fusionrag repair` rebuilds it from the catalog, without a "
        "model."
    )
