"""Store: the owner of all that is kept in one directory, as `layout.py` lists it.

A store at a URL is opened in a directory too, a `WorkingCopy` of its newest version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

from fusionrag_integrations.documents.embedding import probe, same_embedding
from fusionrag_integrations.documents.handles import KVHandle, SearchHit
from fusionrag_integrations.documents.types import Chunk, canonical_text
from fusionrag_integrations.errors import StoreMismatchError
from fusionrag_integrations.store.changes import Changes
from fusionrag_integrations.store.corrections import Corrections
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.base import KVFiles
from fusionrag_integrations.store.layout import (
    INDEX_DIRECTORY,
)
from fusionrag_integrations.store.locking import holding
from fusionrag_integrations.store.manifests import Manifests
from fusionrag_integrations.store.parts import StoreParts
from fusionrag_integrations.store.search import Search
from fusionrag_integrations.store.vector_index.base import GivenIndex
from fusionrag_integrations.support.atomic_files import (
    make_private,
)
from fusionrag_integrations.support.inputs import checked
from fusionrag_integrations.support.threads import Closable, Threads

PATIENCE = 5.0  # seconds, for changes that are short: refreshes, and those of ad-hoc chunks


class Store(Closable):
    """Documents, vectors and KV in one directory. Needs no model: a retriever opens it alone.

    catalog: what was ingested. manifests: the same as files. index: finds chunks. records: KV.
    corrections: what is added to KV. changes: of documents, while the lock is held (`writing`).
    copies: the records of a store at a URL that are on this machine; None for a directory.

    A context manager that closes the store; using it afterwards raises `StoreClosedError`.
    """

    def __init__(self, parts: StoreParts) -> None:
        """Raises `StoreMismatchError` for another embedding than the store was made with."""
        catalog, embedder, index = parts.catalog, parts.embedder, parts.index
        if not same_embedding(catalog.info.probes, probe(embedder)):
            raise StoreMismatchError(
                f"The store at {parts.path} was indexed with the embedding "
                f"{catalog.info.embedding!r}, which makes other vectors of the same texts than "
                f"{embedder.name!r} that was given. Open it with the same embedding, or make a new "
                "store."
            )
        self.path = parts.path
        self.catalog = catalog
        self.index = index
        self.manifests = Manifests(self.path)
        self.corrections = Corrections(self.path, catalog)
        self.records = parts.records(parts.files)
        self.copies = None if parts.copies is None else parts.records(parts.copies)
        self._parts = parts
        self._search = Search(self.path, catalog, index, embedder, parts.fill_index)
        self.changes = Changes(self.path, catalog, self.manifests, index, embedder, self._search)
        self.threads = Threads("fusionrag-search", self.path)  # for event loops

    @classmethod
    @checked(leave=("index", "kv_files"))
    def open(
        cls,
        path: str | Path,
        embedding: object | None = None,
        *,
        index: GivenIndex | None = None,
        kv_files: KVFiles | None = None,
    ) -> Self:
        """Open an existing store: in a directory, or the newest version of one at a URL.

        embedding: the one it was made with: a LangChain `Embeddings`, a LlamaIndex
        `BaseEmbedding`, or None for the built-in lexical one. index: a `VectorIndex`, a client of
        chromadb's or one of its collections. index, kv_files: used instead of those in the
        directory; the caller closes them. Chunks that a given index lacks are added from the
        catalog by the first search or change. Raises as `open_catalog` does, `StoreMismatchError`
        for another embedding, `InvalidInputError` for an index that can't be used, and `StoreError`
        where the directory's index is missing. Where that lacks chunks, the first search or change
        raises `StoreError`.
        """
        with StoreParts.open(path, embedding, index, kv_files).until_taken() as parts:
            return cls(parts)

    @classmethod
    def create(
        cls,
        path: str | Path,
        info: StoreInfo,
        embedding: object | None = None,
        *,
        index: GivenIndex | None = None,
        kv_files: KVFiles | None = None,
        publish: bool = True,
    ) -> Self:
        """Create an empty store, in a directory or at a URL. index, kv_files: as in `open`.

        publish: at a URL, make it known now; else its first change does, in the place of what is
        there. Raises `StoreError` where any part of a store exists, `InvalidInputError` for a path
        that isn't UTF-8, and for an index that can't be used.
        """
        made = StoreParts.create(path, info, embedding, index, kv_files)
        with made.until_taken() as parts:
            if parts.working_copy is not None and publish:
                parts.working_copy.publish_first(parts.catalog.info)
            return cls(parts)

    def close(self) -> None:
        """Wait for calls that are under way, and close all files. May be called again."""
        self.threads.close()
        self._search.close()
        self._parts.close()

    def __deepcopy__(self, memo: object) -> Self:
        """Copies of a retriever share its store, since files and threads can't be copied."""
        return self

    @property
    def version(self) -> int | None:
        """The number of the version that is open; None for a store in a directory."""
        copy = self._parts.working_copy
        return None if copy is None or copy.version is None else copy.version.number

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store's lock, which is needed to change it; at a URL, its lease as well.

        There, what was changed is published at the end. Raises `StoreBusyError` while another
        process, thread or machine holds it, `StoreError` for a read-only store.
        """
        with holding(self.path, PATIENCE), self._publishing():
            self._search.follow()
            self.manifests.notes.write_info(self.catalog.info)
            if self._parts.index_place and self._parts.working_copy is None:
                self.manifests.notes.write_index_place(self._parts.index_place)
            try:
                yield
            finally:
                make_private(self.path / INDEX_DIRECTORY)

    @contextmanager
    def changing_here(self) -> Iterator[None]:
        """Hold the lock for a change that concerns this machine alone, as of ad-hoc chunks."""
        with holding(self.path):
            yield

    def refresh(self) -> bool:
        """Bring a store at a URL to its newest version; returns whether there was a newer one.

        A store in a directory is always at its newest. Raises `StoreBusyError` while it is being
        changed here, and `StoreMismatchError` where it is another model's by now: it then stays at
        its version, and can be used on.
        """
        copy = self._parts.working_copy
        if copy is None or not copy.is_behind():
            return False
        with holding(self.path, PATIENCE):
            if not copy.follow(self.catalog):
                return False
            self._search.follow()
            if not self._parts.index_place:  # others may have a newer version's chunks there
                self.changes.remove_unknown()
        return True

    def _publishing(self) -> AbstractContextManager[None]:
        """What is changed in a working copy is published at the end."""
        copy = self._parts.working_copy
        return nullcontext() if copy is None else copy.writing(self.catalog)

    @checked(leave=("question", "where"))
    def search(
        self,
        question: str,
        k: int = 5,
        *,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[SearchHit]:
        """The `k` chunks nearest to the question, best first; of some scopes, or of all (None).

        where: a filter on metadata, as in `VectorIndex.search`. Raises `InvalidInputError`
        for an empty question, and for a filter that can't be used.
        """
        return self.nearest(self.embed_question(question), k, scopes=scopes, where=where)

    @checked(leave=("vector", "where"))
    def nearest(
        self,
        vector: Iterable[float],
        k: int,
        *,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[SearchHit]:
        """Like `search`, with the question's vector: a list or array of finite numbers."""
        return self._search.nearest(vector, k, scopes, where)

    def embed_question(self, question: str) -> list[float]:
        """The vector of a question, with which to search."""
        return self._search.embed_question(question)

    def similar(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        """The `k` chunks most similar to each chunk, of its own scope, nearest first."""
        return self._search.similar(chunk_ids, k)

    def similar_to(self, chunk: Chunk, k: int) -> list[str]:
        """The `k` chunks of its scope most similar to a chunk that isn't in the store."""
        return self._search.similar_to(chunk, k)

    def embeddings(self, chunk_ids: Sequence[str]) -> dict[str, list[float]]:
        """The vectors of chunks, by id; unknown ids are left out."""
        return self.catalog.vectors.of(chunk_ids)

    @checked()
    def handles(
        self, chunk_ids: Iterable[str], scopes: Sequence[str] | None = None
    ) -> list[KVHandle]:
        """The handles of chunks, in the order asked for.

        Ids of no chunk, or of one of another scope, are left out. scopes: None for every one.
        """
        records = self.catalog.chunks.readable(chunk_ids).values()
        return [r.handle for r in records if scopes is None or r.chunk.scope in scopes]

    @checked()
    def handle_of(
        self, text: str, source: str, scopes: Sequence[str] | None = None
    ) -> KVHandle | None:
        """The handle of the chunk with this text; None where there is none, or more than one.

        source: a document's id, which decides where several have the same text. Leading blank lines
        and trailing white space of the text don't matter.
        """
        records = [
            record
            for record in self.catalog.chunks.with_text(canonical_text(text))
            if scopes is None or record.chunk.scope in scopes
        ]
        of_document = [record for record in records if record.chunk.document_id == source]
        candidates = of_document or records
        return candidates[0].handle if len(candidates) == 1 else None
