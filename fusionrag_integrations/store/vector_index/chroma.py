"""A `VectorIndex` in a directory, by Chroma.

Chroma is imported when a directory is opened, so that an engine with another index doesn't need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fusionrag_integrations.documents.types import MetadataValue
from fusionrag_integrations.store.vector_index.chroma_directory import ChromaDirectory
from fusionrag_integrations.store.vector_index.collection_index import CollectionIndex

DATABASE_FILE = "chroma.sqlite3"  # Chroma's own, in the directory


class ChromaIndex(CollectionIndex):
    """A `VectorIndex` in a directory, which is created if missing. Searches are approximate.

    A read-only directory, or one on a full disk, is searched in a temporary copy.
    """

    def __init__(self, directory: Path) -> None:
        """Open a directory. Raises `StoreError` where it can't be used."""
        super().__init__(ChromaDirectory(directory))

    def entries(
        self, chunk_ids: Sequence[str]
    ) -> dict[str, tuple[Sequence[float], Mapping[str, MetadataValue]]]:
        """Vectors and metadata of chunks by id; ids that aren't in the index are left out."""
        with self._connection.reading() as (collection, _):
            rows = collection.get(ids=list(chunk_ids), include=["embeddings", "metadatas"])
        pairs = zip(rows["embeddings"], rows["metadatas"], strict=True)
        return dict(zip(rows["ids"], pairs, strict=True))
