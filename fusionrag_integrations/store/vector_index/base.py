"""The port for an index of vectors, which any vector database can implement.

`ChromaIndex` is the one in a store's directory. The catalog has the vectors too, so that a lost
index is rebuilt without a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from fusionrag_integrations.documents.types import Chunk


class VectorIndex(Protocol):
    """Vectors of chunks by chunk id, with scope and metadata to filter by.

    Thread-safe. All vectors have the length of the first one that was added. Every method raises
    `StoreError` where the index can't be used, and all but `close` raise `StoreClosedError` once
    it is closed.
    """

    def ids(self, among: Sequence[str] | None = None) -> set[str]:
        """The ids of all chunks in the index, or which of these it has."""

    def holds(self, count: int) -> bool:
        """Whether it has at least so many chunks. Asked before searches, so it has to be quick."""
        ...

    def add(self, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]) -> None:
        """Add chunks, or replace those with the same ids. One vector per chunk, in order.

        Raises `StoreMismatchError` where a vector's length isn't the index's, and
        `InvalidInputError` where the counts differ or an id is repeated. Nothing is added then.
        """

    def remove(self, chunk_ids: Iterable[str]) -> None:
        """Remove chunks; ids that aren't in the index are ignored."""

    def search(
        self,
        vector: Sequence[float],
        k: int,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[tuple[str, float]]:
        """The ids of the `k` nearest chunks with their cosine similarity, best first, ties by id;
        of some scopes, or of all (None). Fewer where there are fewer.

        where: a filter on metadata, "title" and "document_id" among them, such as
        {"page": {"$gt": 3}}; all entries must hold. Comparisons are $eq, $ne, $gt, $gte,
        $lt, $lte, $in and $nin, joined by $and and $or. Raises `InvalidInputError` where k < 1 or
        the filter can't be used, and `StoreMismatchError` as `add` does.
        """

    def search_many(
        self, vectors: Sequence[Sequence[float]], k: int, scopes: Sequence[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        """What `search` finds for each of several vectors."""
        ...

    def matching(self, where: Mapping[str, Any]) -> set[str]:
        """The ids of the chunks that a filter holds for. where: as in `search`."""

    def refresh(self) -> None:
        """From the next call on, see what other processes have written."""

    def close(self) -> None:
        """Release all resources. May be called again."""


GivenIndex: TypeAlias = VectorIndex | Any
"""What `index=` takes: a `VectorIndex`, or a client of chromadb's or one of its collections."""
