"""Store: the owner of all that is kept in one directory, as `layout.py` lists it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from filelock import Timeout

from fusionrag_integrations.documents.embedding import Embedder, as_embedder, probe, same_embedding
from fusionrag_integrations.documents.handles import KVHandle, SearchHit
from fusionrag_integrations.documents.types import Chunk, canonical_text
from fusionrag_integrations.errors import StoreBusyError, StoreError, StoreMismatchError
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.changes import Changes
from fusionrag_integrations.store.chosen_index import opened_index
from fusionrag_integrations.store.corrections import Corrections
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.base import KVFiles
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.layout import (
    CATALOG_FILE,
    INDEX_DIRECTORY,
    KV_DIRECTORY,
    LOCK_FILE,
)
from fusionrag_integrations.store.manifests import Manifests
from fusionrag_integrations.store.opening import is_store, open_catalog
from fusionrag_integrations.store.search import Search
from fusionrag_integrations.store.vector_index.base import GivenIndex, VectorIndex
from fusionrag_integrations.store.vector_index.given import IndexElsewhere
from fusionrag_integrations.support.atomic_files import (
    locked,
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
        index_place: str = "",
    ) -> None:
        """index_place: where the index is, if not in the directory. Chunks that it lacks are then
        added to it from the catalog; else an index that lacks chunks counts as damaged.

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
        self._search = Search(self.path, catalog, index, embedder, bool(index_place))
        self.changes = Changes(self.path, catalog, self.manifests, index, embedder, self._search)
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
        """Open an existing store.

        embedding: the one it was made with: a LangChain `Embeddings`, a LlamaIndex
        `BaseEmbedding`, or None for the built-in lexical one. index: a `VectorIndex`, a client of
        chromadb's or one of its collections. index, kv_files: used instead of those in the
        directory; the caller closes them. Chunks that a given index lacks are added from the
        catalog by the first search or change. Raises as `open_catalog` does, `StoreMismatchError`
        for another embedding, `InvalidInputError` for an index that can't be used, and `StoreError`
        where the directory's index is missing. Where that lacks chunks, the first search or change
        raises `StoreError`.
        """
        path = Path(path).resolve()  # once for all parts, since a link may change
        embedder = as_embedder(embedding)
        with ExitStack() as opened:
            catalog = opened.enter_context(open_catalog(path))
            given = _given_index(index, path, catalog.info)
            return cls._of_parts(path, catalog, embedder, given, kv_files, opened)

    @classmethod
    def create(
        cls,
        path: Path,
        info: StoreInfo,
        embedding: object | None = None,
        *,
        index: GivenIndex | None = None,
        kv_files: KVFiles | None = None,
    ) -> Self:
        """Create an empty store in the directory `path`. index, kv_files: as in `open`.

        Raises `StoreError` where any part of a store exists, `InvalidInputError` for a path that
        isn't UTF-8, and for an index that can't be used.
        """
        check_text(f"The path {shown(str(path))} of a store", str(path.absolute()))
        path = path.resolve()
        is_there = is_store(path)
        embedder = as_embedder(embedding)
        info = replace(info, probes=probe(embedder), store_id=uuid4().hex)
        given = _given_index(index, path, info)
        notes = Manifests(path).notes
        try:
            make_directory(path)
            if not is_there:  # left by an interrupted creation
                remove_file(notes.info_path)
        except OSError as error:
            raise StoreError(f"Can't make a store at {path}: {error}") from error
        with ExitStack() as opened:
            # Before other files: of two processes only one succeeds, and the other changes none.
            catalog = opened.enter_context(Catalog.create(path / CATALOG_FILE, info))
            notes.write_info(info)
            return cls._of_parts(path, catalog, embedder, given, kv_files, opened)

    @classmethod
    def _of_parts(
        cls,
        path: Path,
        catalog: Catalog,
        embedder: Embedder,
        given: IndexElsewhere | None,
        kv_files: KVFiles | None,
        opened: ExitStack,
    ) -> Self:
        """The directory's own index and files where none are given. opened: becomes the store's."""
        index = opened.enter_context(opened_index(path, catalog, given))
        place = given.place if given else ""
        files = LocalKVFiles(path / KV_DIRECTORY) if kv_files is None else kv_files
        store = cls(path, catalog, embedder, index, files, index_place=place)
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
        """Hold the store's lock, which is needed to change it.

        Raises `StoreBusyError` while another process or thread holds it, `StoreError` for a
        read-only store.
        """
        try:
            lock = locked(self.path / LOCK_FILE)
        except Timeout as error:
            raise StoreBusyError(
                f"Another ingest or delete is changing the store at {self.path}. "
                "Wait for it to end."
            ) from error
        except OSError as error:
            raise StoreError(
                f"The store at {self.path} can't be written: {error}. Answering from it needs no "
                "writing."
            ) from error
        with lock:
            self._search.follow()
            self.manifests.notes.write_info(self.catalog.info)
            if self._index_place:
                self.manifests.notes.write_index_place(self._index_place)
            try:
                yield
            finally:
                make_private(self.path / INDEX_DIRECTORY)

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
