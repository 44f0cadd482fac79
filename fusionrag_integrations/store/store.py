"""Store: the owner of all that is kept in one directory, as `layout.py` lists it.

A store at a URL is opened in a directory too, a `WorkingCopy` of its newest version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from fusionrag_integrations.documents.embedding import Embedder, as_embedder, probe, same_embedding
from fusionrag_integrations.documents.handles import KVHandle, SearchHit
from fusionrag_integrations.documents.types import Chunk, canonical_text
from fusionrag_integrations.errors import StoreError, StoreMismatchError
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.changes import Changes
from fusionrag_integrations.store.chosen_index import opened_index
from fusionrag_integrations.store.corrections import Corrections
from fusionrag_integrations.store.generations import directory_of
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.base import KVFiles
from fusionrag_integrations.store.kv.copied import CopiedKVFiles
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.layout import (
    CATALOG_FILE,
    INDEX_DIRECTORY,
    KV_DIRECTORY,
)
from fusionrag_integrations.store.locking import holding
from fusionrag_integrations.store.manifests import Manifests
from fusionrag_integrations.store.objects.opening import is_url
from fusionrag_integrations.store.opening import open_catalog
from fusionrag_integrations.store.published.working_copy import WorkingCopy
from fusionrag_integrations.store.search import Search
from fusionrag_integrations.store.stored_info import is_store
from fusionrag_integrations.store.vector_index.base import GivenIndex, VectorIndex
from fusionrag_integrations.store.vector_index.given import IndexElsewhere
from fusionrag_integrations.support.atomic_files import (
    make_directory,
    make_private,
    remove_file,
)
from fusionrag_integrations.support.inputs import check_text, checked, shown
from fusionrag_integrations.support.threads import Closable, Threads


class Store(Closable):
    """Documents, vectors and KV in one directory. Needs no model: a retriever opens it alone.

    catalog: what was ingested. manifests: the same as files. index: finds chunks. records: KV.
    corrections: what is added to KV. changes: of documents, while the lock is held (`writing`).
    copies: the records of a store at a URL that are on this machine; None for a directory.

    A context manager that closes the store; using it afterwards raises `StoreClosedError`.
    """

    def __init__(
        self,
        path: Path,
        catalog: Catalog,
        embedder: Embedder,
        index: VectorIndex,
        files: KVFiles,
        *,
        fill_index: bool = True,
        index_place: str = "",
    ) -> None:
        """fill_index: add chunks that the index lacks from the catalog. If False, an index that
        lacks chunks counts as damaged. index_place: where it is, if not in the directory.

        Raises `StoreMismatchError` for another embedding than the store was made with.
        """
        if not same_embedding(catalog.info.probes, probe(embedder)):
            raise StoreMismatchError(
                f"The store at {path} was indexed with the embedding {catalog.info.embedding!r}, "
                f"which makes other vectors of the same texts than {embedder.name!r} that was "
                "given. Open it with the same embedding, or make a new store."
            )
        self.path = path.resolve()  # stays valid when the working directory or a link changes
        self.catalog = catalog
        self.index = index
        self.manifests = Manifests(self.path)
        self.corrections = Corrections(self.path, catalog)
        info = catalog.info
        self.records = RecordStore(files, info.record_signature, info.kv_format)
        self._index_place = index_place
        self._search = Search(self.path, catalog, index, embedder, fill_index)
        self.changes = Changes(self.path, catalog, self.manifests, index, embedder, self._search)
        self.copies: RecordStore | None = None
        self._working_copy: WorkingCopy | None = None
        self._opened = ExitStack()  # parts that `open` or `create` opened
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
        embedder = as_embedder(embedding)
        with ExitStack() as opened:
            copy = opened.enter_context(WorkingCopy(path)) if is_url(path) else None
            # Once for all parts, since a link may change.
            directory = directory_of(path) if copy is None else copy.path
            catalog = opened.enter_context(open_catalog(directory))
            given = _given_index(index, directory, catalog.info)
            return cls._of_parts(directory, catalog, embedder, given, kv_files, opened, copy)

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

        publish: at a URL, make it known now; else its first change does. Raises `StoreError` where
        any part of a store exists, `InvalidInputError` for a path that isn't UTF-8, and for an
        index that can't be used.
        """
        embedder = as_embedder(embedding)
        info = replace(info, probes=probe(embedder), store_id=uuid4().hex)
        given = _given_index(index, Path(path), info)
        with ExitStack() as opened:
            copy = opened.enter_context(WorkingCopy(path, is_new=True)) if is_url(path) else None
            directory = _empty_directory(Path(path)) if copy is None else copy.path
            # Before other files: of two processes only one succeeds, and the other changes none.
            catalog = opened.enter_context(Catalog.create(directory / CATALOG_FILE, info))
            Manifests(directory).notes.write_info(info)
            store = cls._of_parts(directory, catalog, embedder, given, kv_files, opened, copy)
        if copy is not None and publish:
            copy.publish_first(info)
        return store

    @classmethod
    def _of_parts(
        cls,
        path: Path,
        catalog: Catalog,
        embedder: Embedder,
        given: IndexElsewhere | None,
        kv_files: KVFiles | None,
        opened: ExitStack,
        copy: WorkingCopy | None,
    ) -> Self:
        """The directory's own index and files where none are given. opened: becomes the store's."""
        # The index of a working copy follows the catalog, as one that is given.
        fill_index = given is not None or copy is not None
        index = opened.enter_context(opened_index(path, catalog, given, fill_index))
        if kv_files is None:
            kv_files = LocalKVFiles(path / KV_DIRECTORY) if copy is None else copy.files
        place = given.place if given else ""
        store = cls(
            *(path, catalog, embedder, index, kv_files), fill_index=fill_index, index_place=place
        )
        store._working_copy = copy
        if isinstance(kv_files, CopiedKVFiles):
            info = catalog.info
            store.copies = RecordStore(kv_files.copies, info.record_signature, info.kv_format)
        store._opened = opened.pop_all()
        return store

    def close(self) -> None:
        """Wait for calls that are under way, and close all files. May be called again."""
        self.threads.close()
        self._search.close()
        self._opened.close()
        self.catalog.close()

    def __deepcopy__(self, memo: object) -> Self:
        """Copies of a retriever share its store, since files and threads can't be copied."""
        return self

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store's lock, which is needed to change it; at a URL, its lease as well.

        There, what was changed is published at the end. Raises `StoreBusyError` while another
        process, thread or machine holds it, `StoreError` for a read-only store.
        """
        with holding(self.path), self._publishing():
            self._search.follow()
            self.manifests.notes.write_info(self.catalog.info)
            if self._index_place and self._working_copy is None:
                self.manifests.notes.write_index_place(self._index_place)
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
        if self._working_copy is None:
            return False
        with holding(self.path):
            if not self._working_copy.follow(self.catalog):
                return False
            self._search.follow()
            if not self._index_place:  # others may have a newer version's chunks there
                self.changes.remove_unknown()
        return True

    def _publishing(self) -> AbstractContextManager[None]:
        """What is changed in a working copy is published at the end."""
        copy = self._working_copy
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


def _given_index(given: GivenIndex | None, path: Path, info: StoreInfo) -> IndexElsewhere | None:
    return None if given is None else IndexElsewhere.of(given, path, info.store_id)


def _empty_directory(path: Path) -> Path:
    """A directory for a new store, with nothing of an older one. Raises as `Store.create` does."""
    check_text(f"The path {shown(str(path))} of a store", str(path.absolute()))
    path = directory_of(path)
    is_there = is_store(path)
    try:
        make_directory(path)
        if not is_there:  # left by an interrupted creation
            remove_file(Manifests(path).notes.info_path)
    except OSError as error:
        raise StoreError(f"Can't make a store at {path}: {error}") from error
    return path
