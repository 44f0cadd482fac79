"""Replaces and deletes documents in manifests, catalog and index, so that a crash loses nothing.

replace   index extended; manifest written; catalog updated; old chunks removed from the index
delete    manifest moved; document deleted from catalog, KV and index; manifest removed

At any moment a document is found by either its old or its new text, and the next change completes
one that was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.embedding import Embedder, as_vector
from fusionrag_integrations.documents.types import Chunk, DocumentKey
from fusionrag_integrations.errors import CatalogRowError, StoreError
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.layout import UNFINISHED_FILE
from fusionrag_integrations.store.manifests import Manifest, Manifests
from fusionrag_integrations.store.search import Search
from fusionrag_integrations.store.vector_index.base import VectorIndex
from fusionrag_integrations.store.vector_index.filling import restore_vectors
from fusionrag_integrations.support.atomic_files import remove_file, touch_file
from fusionrag_integrations.support.batches import in_batches
from fusionrag_integrations.support.progress import Progress

EMBEDDING_BATCH = 64


@dataclass(frozen=True, slots=True)
class Update:
    """A document with the hash of its content and the records of all its chunks.

    vectors: of its chunks by chunk id, as far as they are known; others are embedded.
    """

    document: DocumentKey
    content_hash: str
    records: tuple[ChunkRecord, ...]
    vectors: Mapping[str, Sequence[float]] = field(default_factory=dict)


class Changes:
    """Changes the documents of one store. Callers hold the store's lock."""

    def __init__(
        self,
        path: Path,
        catalog: Catalog,
        manifests: Manifests,
        index: VectorIndex,
        embedder: Embedder,
        search: Search,
    ) -> None:
        self._path = path
        self._catalog = catalog
        self._manifests = manifests
        self._index = index
        self._embedder = embedder
        self._search = search

    @contextmanager
    def begin(self, collect: Callable[[], object]) -> Iterator[None]:
        """Begin a change, completing an interrupted one first.

        That deletes what it had begun to delete, and writes all manifests again: an ingest adds
        the links of fused KV to them at its end, so that each is written once.
        collect: called then, to delete what was made from deleted texts.
        """
        marker = self._path / UNFINISHED_FILE
        interrupted = marker.exists() or self._manifests.deleting()
        with self._writable():
            touch_file(marker)
        if interrupted:
            documents = self._catalog.documents.all()
            self.delete(self._manifests.deleted(documents), collect)
            self.remove_unknown()
            for document in self._catalog.documents.all():
                with suppress(CatalogRowError):  # its manifest may be the only intact copy
                    self.note_links([document])
        yield
        with self._writable():
            remove_file(marker)

    def replace(self, updates: Sequence[Update]) -> None:
        """Add documents, replacing those with the same keys."""
        old = set(self._catalog.chunks.ids(update.document for update in updates))
        chunks = [record.chunk for update in updates for record in update.records]
        vectors = self._add_known(updates, old)
        new = [chunk for chunk in chunks if chunk.id not in old and chunk.id not in vectors]
        vectors |= self.embed(new)
        vectors |= self._catalog.vectors.of(chunk.id for chunk in chunks if chunk.id in old)
        for update in updates:
            key, content, records = update.document, update.content_hash, update.records
            unfused = ((),) * len(records)
            known = {r.chunk.id: vectors[r.chunk.id] for r in records if r.chunk.id in vectors}
            self._manifests.write(Manifest(key, content, records, unfused, known))
            self._catalog.documents.replace(key, content, records, known)
            self._manifests.remove_aside(key)
        self._index.remove(old - {chunk.id for chunk in chunks})
        self._note_revision()

    def _add_known(self, updates: Sequence[Update], old: set[str]) -> dict[str, list[float]]:
        """Add the chunks to the index that aren't there and whose vectors come with them."""
        added: dict[str, list[float]] = {}
        for update in updates:
            chunks = [record.chunk for record in update.records]
            known = [c for c in chunks if c.id in update.vectors and c.id not in old]
            vectors = {chunk.id: list(update.vectors[chunk.id]) for chunk in known}
            self._index.add(known, list(vectors.values()))
            added |= vectors
        return added

    def delete(
        self, documents: Iterable[DocumentKey], free: Callable[[], object] = lambda: None
    ) -> int:
        """Delete documents; returns how many there were.

        free: called once they are no longer in the catalog, to delete their KV. The index is
        changed after that, since Chroma needs room on the disk to delete.
        """
        keys = list(documents)
        for key in keys:
            self._manifests.begin_delete(key)
        chunk_ids = self._catalog.chunks.ids(keys)
        deleted = self._catalog.documents.delete(keys)
        free()
        self._index.remove(chunk_ids)
        self._manifests.finish_deletes()
        self._note_revision()
        return deleted

    def note_links(self, documents: Iterable[DocumentKey]) -> None:
        """Write the manifests of documents from the catalog, after their chunks were fused."""
        for document in documents:
            self._manifests.write(manifest_of(self._catalog, document))

    def embed_missing(self, progress: Progress) -> None:
        """Make the index match the catalog, embedding chunks whose vectors are lost in both."""
        not_indexed = set(self._catalog.chunks.ids()) - self.remove_unknown()
        missing = sorted(not_indexed.union(self._catalog.vectors.missing()))
        for start in range(0, len(missing), EMBEDDING_BATCH):
            progress("embed", start, len(missing))
            batch = missing[start : start + EMBEDDING_BATCH]
            without = restore_vectors(self._catalog, self._index, batch)
            self._catalog.vectors.set(self.embed(without))
        progress("embed", len(missing), len(missing))

    def remove_unknown(self) -> set[str]:
        """Remove chunks from the index that aren't in the catalog; returns the others' ids."""
        indexed, known = self._index.ids(), set(self._catalog.chunks.ids())
        self._index.remove(sorted(indexed - known))
        return indexed & known

    def embed(self, chunks: Sequence[Chunk]) -> dict[str, list[float]]:
        """Embed chunks and add them to the index; returns their vectors, by chunk id."""
        vectors: dict[str, list[float]] = {}
        for batch in in_batches(chunks, EMBEDDING_BATCH):
            found = self._embedder.embed_documents([chunk.embedding_text for chunk in batch])
            made = [as_vector(vector) for vector in found]
            self._index.add(batch, made)
            vectors.update(zip((chunk.id for chunk in batch), made, strict=True))
        return vectors

    def _note_revision(self) -> None:
        revision = self._search.note_change()
        self._manifests.notes.write_revision(revision, self._catalog.info.store_id)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"The store at {self._path} can't be written: {error}.") from error


def manifest_of(catalog: Catalog, document: DocumentKey) -> Manifest:
    """A document's manifest, made from the catalog."""
    records = tuple(catalog.chunks.records(catalog.chunks.ids([document])).values())
    neighbours = tuple(catalog.kv.neighbours(record.chunk.id) for record in records)
    content = catalog.documents.content_hash(document) or ""
    vectors = catalog.vectors.of(record.chunk.id for record in records)
    return Manifest(document, content, records, neighbours, vectors)
