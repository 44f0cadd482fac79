"""What has been ingested, and how to search it: the catalog and the vector index together.

A corpus opens without a model, so a retriever needs no weights.

<store>/catalog.sqlite   documents, chunks, their tokens and KV keys   (the truth)
<store>/index/           Chroma: text -> nearest chunks                (follows the catalog)
<store>/kv/              KV records                                    (see the store package)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from fusionrag_integrations.catalog import CATALOG_FILE, Catalog, StoreInfo
from fusionrag_integrations.embedding import Embedder, as_embedder
from fusionrag_integrations.errors import InvalidInputError, StoreError, StoreMismatchError
from fusionrag_integrations.index import ChunkIndex
from fusionrag_integrations.types import Chunk, ChunkRecord, Document, SearchHit

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the steps in all."""

EMBEDDING_BATCH = 64


class Index(Protocol):
    """Embeddings of chunks by their ids; `ChunkIndex` keeps them in Chroma."""

    def ids(self) -> set[str]:
        """The ids of all chunks in the index."""
        ...

    def add(self, chunks: Sequence[Chunk], embeddings: Sequence[Sequence[float]]) -> None:
        """Add chunks, or replace those whose ids are known. One embedding a chunk, in order."""
        ...

    def remove(self, chunk_ids: Iterable[str]) -> None:
        """Remove chunks; ids that aren't in the index are passed over."""
        ...

    def search(
        self, embedding: Sequence[float], k: int, scope: str | None = None
    ) -> list[tuple[str, float]]:
        """The ids and scores of the `k` nearest chunks, best first."""
        ...

    def neighbours_many(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        """For each chunk the `k` most similar others of its own scope, nearest first."""
        ...


class Corpus:
    """The text side of a store. `open` and `create` take Chroma for the index."""

    def __init__(self, path: Path, catalog: Catalog, embedder: Embedder, index: Index) -> None:
        if catalog.info.embedding != embedder.name:
            raise StoreMismatchError(
                f"The store at {path} was indexed with the embedding {catalog.info.embedding!r}, "
                f"not {embedder.name!r}. Open it with the same embedding, or make a new store."
            )
        self.path = path
        self.catalog = catalog
        self._embedder = embedder
        self._index = index

    @classmethod
    def open(cls, path: str | Path, embedding: object | None = None) -> Corpus:
        """Open the corpus of an existing store.

        embedding: the one it was made with: a LangChain `Embeddings`, a LlamaIndex
        `BaseEmbedding`, or None for the built-in lexical one. Raises `StoreNotFoundError`, and
        `StoreMismatchError` for another embedding.
        """
        path = Path(path)
        catalog = Catalog.open(path / CATALOG_FILE)
        return cls(path, catalog, as_embedder(embedding), ChunkIndex(path / "index"))

    @classmethod
    def create(cls, path: Path, info: StoreInfo, embedding: object | None = None) -> Corpus:
        """Make an empty corpus in the directory `path`."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"Can't make a store at {path}: {error}") from error
        catalog = Catalog.create(path / CATALOG_FILE, info)
        return cls(path, catalog, as_embedder(embedding), ChunkIndex(path / "index"))

    def search(self, question: str, k: int = 5, *, scope: str | None = None) -> list[SearchHit]:
        """The `k` chunks nearest to the question, best first; of one scope, or of all (None)."""
        if not question.strip():
            raise InvalidInputError("The question is empty.")
        nearest = self._index.search(self._embedder.embed_query(question), k, scope=scope)
        records = self.catalog.records([chunk_id for chunk_id, _ in nearest])
        return [
            SearchHit(records[chunk_id].chunk, score, records[chunk_id].handle)
            for chunk_id, score in nearest
            if chunk_id in records
        ]

    def replace(
        self, document: Document, content_hash: str, records: Sequence[ChunkRecord]
    ) -> None:
        """Put a document in the place of what its id named before."""
        old = self.catalog.chunk_ids([document.id])
        self.catalog.replace_document(document, content_hash, records)
        self._index.remove(old)  # a new title changes what is embedded, even of an old text

    def delete(self, document_ids: Iterable[str]) -> int:
        """Delete documents; returns how many there were. The catalog goes first: it decides."""
        ids = list(document_ids)
        chunk_ids = self.catalog.chunk_ids(ids)
        deleted = self.catalog.delete_documents(ids)
        self._index.remove(chunk_ids)
        return deleted

    def embed_missing(self, progress: Progress) -> None:
        """Bring the index in line with the catalog: drop strangers, embed what is missing."""
        indexed = self._index.ids()
        known = set(self.catalog.chunk_ids())
        self._index.remove(sorted(indexed - known))
        missing = sorted(known - indexed)
        for start in range(0, len(missing), EMBEDDING_BATCH):
            progress("embed", start, len(missing))
            records = self.catalog.records(missing[start : start + EMBEDDING_BATCH])
            chunks = [record.chunk for record in records.values()]
            texts = [chunk.embedding_text for chunk in chunks]
            self._index.add(chunks, self._embedder.embed_documents(texts))
        progress("embed", len(missing), len(missing))

    def similar(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        """The `k` chunks most similar to each chunk, of its own scope, nearest first."""
        return self._index.neighbours_many(chunk_ids, k)

    def close(self) -> None:
        """Release the catalog's files."""
        self.catalog.close()


def document_order(hits: Sequence[SearchHit]) -> list[SearchHit]:
    """Documents by their best hit; a document's chunks together, in their own order.

    A chunk may refer back to the one before it, so that one has to stand before it.
    """
    rank: dict[str, int] = {}
    for hit in hits:
        rank.setdefault(hit.chunk.document_id, len(rank))
    return sorted(hits, key=lambda hit: (rank[hit.chunk.document_id], hit.chunk.index))
