"""Chunk ids by similarity: a Chroma collection whose embeddings are made by the caller.

Chroma is imported when a directory is opened, so that an engine with another index needs none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusionrag_integrations.errors import InvalidInputError, StoreError, StoreMismatchError
from fusionrag_integrations.types import Chunk, MetadataValue

_COLLECTION = "chunks"
# Chroma's graph is approximate; this width finds the true neighbours in collections of thousands.
_HNSW = {"space": "cosine", "ef_construction": 200, "ef_search": 200, "max_neighbors": 32}
_QUERIES_AT_ONCE = 256


class ChunkIndex:
    """Embeddings of chunks in a directory, created where there is none.

    Vectors all have the length of the first one that was added; scores are cosine similarity,
    higher is nearer. Every method raises StoreError where the directory can't be read or
    written.
    """

    def __init__(self, directory: Path) -> None:
        import chromadb
        from chromadb.config import Settings

        self._directory = directory
        # Once a directory has failed to open, Chroma keeps what it began of it for the rest of the
        # process, and answers the next try with one of these.
        with self._errors(AttributeError, KeyError, ValueError):
            directory.mkdir(parents=True, exist_ok=True)
            self._client: Any = chromadb.PersistentClient(
                # Chroma keeps one system a path: the same directory must have the same name.
                path=str(directory.resolve()),
                settings=Settings(anonymized_telemetry=False),
            )
            self._collection: Any = self._client.get_or_create_collection(
                _COLLECTION, embedding_function=None, configuration={"hnsw": _HNSW}
            )

    def __len__(self) -> int:
        with self._errors():
            return int(self._collection.count())

    def ids(self) -> set[str]:
        """The ids of all chunks in the index."""
        with self._errors():
            return set(self._collection.get(include=[])["ids"])

    def add(self, chunks: Sequence[Chunk], embeddings: Sequence[Sequence[float]]) -> None:
        """Add chunks, or replace those whose ids are known. One embedding a chunk, in order.

        Raises InvalidInputError where the counts differ or an id comes twice, and
        StoreMismatchError where a vector's length isn't the index's.
        """
        if len(chunks) != len(embeddings):
            raise InvalidInputError(
                f"{len(chunks)} chunks were given with {len(embeddings)} embeddings; "
                "give one embedding a chunk."
            )
        if len({chunk.id for chunk in chunks}) != len(chunks):
            raise InvalidInputError("A chunk id comes twice in one call; give each chunk once.")
        with self._errors():
            for part in self._batches(len(chunks)):
                self._collection.upsert(
                    ids=[chunk.id for chunk in chunks[part]],
                    embeddings=[list(vector) for vector in embeddings[part]],
                    documents=[chunk.text for chunk in chunks[part]],
                    metadatas=[_metadata(chunk) for chunk in chunks[part]],
                )

    def remove(self, chunk_ids: Iterable[str]) -> None:
        """Remove chunks; ids that aren't in the index are passed over."""
        ids = list(chunk_ids)
        with self._errors():
            for part in self._batches(len(ids)):
                self._collection.delete(ids=ids[part])

    def search(
        self, embedding: Sequence[float], k: int, scope: str | None = None
    ) -> list[tuple[str, float]]:
        """The ids and scores of the `k` nearest chunks, best first, equal scores by id.

        Of one scope, or of all (None); fewer where there are fewer. Raises InvalidInputError
        where k < 1, and StoreMismatchError where the vector's length isn't the index's.
        """
        _check_k(k)
        return self._query([embedding], k, scope)[0]

    def neighbours_many(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        """For each chunk the `k` most similar others of its own scope, nearest first.

        Raises InvalidInputError where k < 1, and StoreError where a chunk isn't in the index.
        """
        _check_k(k)
        neighbours: dict[str, list[str]] = {}
        for part in self._batches(len(chunk_ids), _QUERIES_AT_ONCE):
            for scope, stored in self._stored(chunk_ids[part]).items():
                # One more than asked for, since a chunk usually finds itself.
                results = self._query(list(stored.values()), k + 1, scope)
                for chunk_id, nearest in zip(stored, results, strict=True):
                    neighbours[chunk_id] = [i for i, _ in nearest if i != chunk_id][:k]
        return neighbours

    def close(self) -> None:
        """Release the directory's files; the index can't be used afterwards."""
        with self._errors():
            self._client.close()

    def _stored(self, chunk_ids: Sequence[str]) -> dict[str, dict[str, Sequence[float]]]:
        """scope -> chunk id -> embedding."""
        with self._errors():
            found = self._collection.get(
                ids=list(dict.fromkeys(chunk_ids)), include=["embeddings", "metadatas"]
            )
        missing = set(chunk_ids).difference(found["ids"])
        if missing:
            raise StoreError(
                f"The index in {self._directory} doesn't hold chunk {min(missing)!r}"
                f" ({len(missing)} missing); ingest its document again."
            )
        by_scope: dict[str, dict[str, Sequence[float]]] = defaultdict(dict)
        for chunk_id, vector, metadata in zip(
            found["ids"], found["embeddings"], found["metadatas"], strict=True
        ):
            by_scope[metadata["scope"]][chunk_id] = vector
        return by_scope

    def _query(
        self, embeddings: Sequence[Sequence[float]], k: int, scope: str | None
    ) -> list[list[tuple[str, float]]]:
        with self._errors():
            found = self._collection.query(
                query_embeddings=list(embeddings),
                n_results=k,
                where=None if scope is None else {"scope": scope},
                include=["distances"],
            )
        return [
            sorted(
                ((chunk_id, 1.0 - distance) for chunk_id, distance in zip(*row, strict=True)),
                key=lambda hit: (-hit[1], hit[0]),
            )
            for row in zip(found["ids"], found["distances"], strict=True)
        ]

    def _batches(self, count: int, size: int | None = None) -> Iterator[slice]:
        size = size or int(self._client.get_max_batch_size())
        return (slice(start, start + size) for start in range(0, count, size))

    @contextmanager
    def _errors(self, *others: type[Exception]) -> Iterator[None]:
        """Chroma's errors, the system's and `others` as ours, with the directory."""
        from chromadb.errors import ChromaError, InvalidArgumentError

        try:
            yield
        except InvalidArgumentError as error:
            if "dimension" in str(error):
                raise StoreMismatchError(
                    f"The index in {self._directory} was made by another embedding: {error}. "
                    "Use the embedding that it was made with, or make a new store."
                ) from error
            raise InvalidInputError(f"An embedding can't be used: {error}.") from error
        except (ChromaError, OSError, *others) as error:
            raise StoreError(
                f"The index in {self._directory} can't be used: {error}. If it is damaged, "
                "delete that directory and ingest again."
            ) from error


def _metadata(chunk: Chunk) -> dict[str, MetadataValue]:
    """What Chroma keeps beside a chunk; the user's own keys can't hide ours."""
    own = {f"metadata_{key}": value for key, value in chunk.metadata.items()}
    return own | {
        "document_id": chunk.document_id,
        "index": chunk.index,
        "title": chunk.title,
        "scope": chunk.scope,
    }


def _check_k(k: int) -> None:
    if k < 1:
        raise InvalidInputError(f"k is {k}; it must be at least 1.")
