"""What has been ingested, and how to search it: the catalog and the vector index together.

A corpus opens without a model, so a retriever needs no weights.

<store>/catalog.sqlite   documents, chunks, their tokens and KV keys   (the truth)
<store>/documents/       the same as files, to rebuild the catalog from (see manifests)
<store>/index/           Chroma: text -> nearest chunks                (follows the catalog)
<store>/kv/              KV records                                    (see records and store)
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self
from uuid import uuid4

from filelock import Timeout

from fusionrag_integrations.catalog import CATALOG_FILE, UNFINISHED_FILE, Catalog, StoreInfo
from fusionrag_integrations.corrections import DIRECTORY as CORRECTIONS_DIRECTORY
from fusionrag_integrations.durable import (
    close_to_others,
    locked,
    make_directory,
    remove_file,
    touch_file,
)
from fusionrag_integrations.embedding import Embedder, as_embedder, as_vector, makes_the_same, probe
from fusionrag_integrations.errors import (
    CatalogRowError,
    InvalidInputError,
    StoreError,
    StoreMismatchError,
    StoreNotFoundError,
)
from fusionrag_integrations.exact_search import ExactSearch
from fusionrag_integrations.index import DATABASE_FILE, ChunkIndex
from fusionrag_integrations.inputs import check_text, checked, shown
from fusionrag_integrations.manifests import DIRECTORY as DOCUMENTS_DIRECTORY
from fusionrag_integrations.manifests import Manifest, Manifests
from fusionrag_integrations.threads import Closable, Threads
from fusionrag_integrations.types import (
    Chunk,
    ChunkRecord,
    Document,
    DocumentKey,
    KVHandle,
    Passage,
    SearchHit,
    canonical_text,
)

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the steps in all."""

EMBEDDING_BATCH = 64
SEARCHES = 10  # at most, where each one meets with another change
INDEX_DIRECTORY = "index"
LOCK_FILE = "writing.lock"
KV_DIRECTORY = "kv"  # the name of the records' directory in a store's


_BESIDE_THE_CATALOG = (DOCUMENTS_DIRECTORY, INDEX_DIRECTORY, KV_DIRECTORY, CORRECTIONS_DIRECTORY)
_WITHOUT_DOCUMENTS = (
    f"can't be made anew without {DOCUMENTS_DIRECTORY}: put that back, or ingest into another "
    "directory."
)


class Index(Protocol):
    """Embeddings of chunks by their ids; `ExactSearch` is the one of a store."""

    def __len__(self) -> int:
        """How many chunks there are."""
        ...

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
        self,
        embedding: Sequence[float],
        k: int,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[tuple[str, float]]:
        """The ids and scores of the `k` nearest chunks, best first; of all scopes where None."""
        ...

    def refresh(self) -> None:
        """See what another process has written since the index was opened."""
        ...

    def neighbours_many(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        """For each chunk the `k` most similar others of its own scope, nearest first."""
        ...


@dataclass(frozen=True, slots=True)
class Update:
    """A document with the hash of its content and the records of all its chunks."""

    document: Document
    content_hash: str
    records: tuple[ChunkRecord, ...]


class Corpus(Closable):
    """The text side of a store. `open` and `create` take Chroma for the index.

    A context manager, which is closed at its end; using it afterwards raises `StoreClosedError`.
    """

    def __init__(self, path: Path, catalog: Catalog, embedder: Embedder, index: Index) -> None:
        if not makes_the_same(catalog.info.probes, probe(embedder)):
            raise StoreMismatchError(
                f"The store at {path} was indexed with the embedding {catalog.info.embedding!r}, "
                f"which makes other vectors of the same texts than {embedder.name!r} that was "
                "given. Open it with the same embedding, or make a new store."
            )
        self.path = path.resolve()  # whatever becomes of the working directory, or of a link to it
        self.catalog = catalog
        self.manifests = Manifests(self.path)
        self._embedder = embedder
        self._index = index
        self._seen = catalog.revision  # when the index was last read or written
        self._is_whole = False  # whether the index has been looked at
        self._opened = ExitStack()  # what `open` or `create` opened
        self.threads = Threads("fusionrag-search", self.path)  # what event loops wait for

    @classmethod
    @checked()
    def open(cls, path: str | Path, embedding: object | None = None) -> Corpus:
        """Open the corpus of an existing store.

        embedding: the one it was made with: a LangChain `Embeddings`, a LlamaIndex
        `BaseEmbedding`, or None for the built-in lexical one. Raises what `open_catalog` does,
        `StoreMismatchError` for another embedding, and `StoreError` where the index is gone. One
        that has lost chunks is named by the first search or change.
        """
        path = Path(path).resolve()  # once, for all parts: a link may be put elsewhere
        catalog = open_catalog(path)
        return cls._of(path, catalog, as_embedder(embedding), partial(_open_index, path))

    @classmethod
    def create(cls, path: Path, info: StoreInfo, embedding: object | None = None) -> Corpus:
        """Make an empty corpus in the directory `path`.

        Raises `StoreError` where anything of a store is there already, `InvalidInputError` for a
        path that is not UTF-8 text.
        """
        check_text(f"The path {shown(str(path))} of a store", str(path.absolute()))
        path = path.resolve()
        is_there = is_store(path)
        embedder = as_embedder(embedding)
        info = replace(info, probes=probe(embedder), store_id=uuid4().hex)
        manifests = Manifests(path)
        try:
            make_directory(path)
            if not is_there:  # what a making that was cut off has left
                remove_file(manifests.info_path)
        except OSError as error:
            raise StoreError(f"Can't make a store at {path}: {error}") from error
        # First, as only one of two processes can: the other must leave its files as they are.
        catalog = Catalog.create(path / CATALOG_FILE, info)
        manifests.note_info(info)
        return cls._of(path, catalog, embedder, lambda _: ChunkIndex(path / INDEX_DIRECTORY))

    @classmethod
    def _of(
        cls,
        path: Path,
        catalog: Catalog,
        embedder: Embedder,
        open_index: Callable[[Catalog], ChunkIndex],
    ) -> Corpus:
        """What can't be opened leaves nothing open."""
        with ExitStack() as opened:
            opened.enter_context(catalog)
            index = opened.enter_context(ExactSearch(open_index(catalog), catalog))
            corpus = cls(path, catalog, embedder, index)
            corpus._opened = opened.pop_all()
        return corpus

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

        where: a filter on metadata, as `ChunkIndex.search` takes it. Raises `InvalidInputError`
        for an empty question, and for a filter that can't be.
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
        vector = as_vector(vector)
        if where is not None and not isinstance(where, Mapping):
            raise InvalidInputError(f"The filter {shown(where)} can't be used: give a mapping.")
        for _ in range(SEARCHES):
            revision = self.catalog.revision
            self._follow()
            try:
                hits = self._nearest(vector, k, scopes, where)
            except StoreError:  # another process may have changed the index just now
                self._index.refresh()
                hits = self._nearest(vector, k, scopes, where)
            # What was replaced between index and catalog is found in neither.
            if self.catalog.revision == revision:
                break
        return hits

    def _nearest(
        self,
        vector: Sequence[float],
        k: int,
        scopes: Sequence[str] | None,
        where: Mapping[str, Any] | None,
    ) -> list[SearchHit]:
        wanted = k
        while True:
            nearest = self._index.search(vector, wanted, scopes, where)
            records = self.catalog.records([chunk_id for chunk_id, _ in nearest], tokens=False)
            # An interrupted ingest may leave chunks in the index that are gone.
            hits = [
                SearchHit(records[chunk_id].chunk, score, records[chunk_id].handle)
                for chunk_id, score in nearest
                if chunk_id in records
            ]
            if len(hits) >= k or len(nearest) < wanted:
                break
            wanted *= 2
        if not nearest and not self.catalog.counts().chunks:
            logger.warning("The store at %s holds no chunks: ingest documents first.", self.path)
        return hits[:k]

    def _check_index(self) -> None:
        """Raises `StoreError` where the index has fewer chunks than the catalog.

        It may have more: chunks are added to it first, and removed from it last.
        """
        while True:
            revision = self.catalog.revision
            if self.catalog.counts().chunks <= len(self._index):
                self._is_whole = True
                return
            self._index.refresh()
            if self.catalog.revision == revision and self.catalog.counts().chunks > len(
                self._index
            ):
                raise _lost(self.path, self.catalog)

    def _follow(self) -> None:
        """Read the index anew where another process, or another engine, has changed documents.

        The first time, see that it is whole: not when it is opened, since a process that has used
        Chroma can't be forked.
        """
        if not self._is_whole:
            self._check_index()
        revision = self.catalog.revision
        if revision != self._seen:
            self._index.refresh()
            self._seen = revision

    def embed_question(self, question: str) -> list[float]:
        """The vector that the index is searched with."""
        if not isinstance(question, str):
            raise InvalidInputError(f"The question is {shown(question)}; give a string.")
        if not question.strip():
            raise InvalidInputError("The question is empty.")
        check_text("The question", question)
        return self._embedder.embed_query(question)

    def embeddings(self, chunk_ids: Sequence[str]) -> dict[str, list[float]]:
        """The vectors of chunks, by their ids; unknown ids are left out."""
        return self.catalog.vectors(chunk_ids)

    @checked()
    def handle_of(
        self, text: str, source: str, scopes: Sequence[str] | None = None
    ) -> KVHandle | None:
        """The handle of the chunk with this text; None where there is none, or more than one.

        source decides where several documents have the same text: it is one's id. Blank lines
        before the text and white space behind it don't matter.
        """
        records = [
            record
            for record in self.catalog.with_text(canonical_text(text))
            if scopes is None or record.chunk.scope in scopes
        ]
        of_document = [record for record in records if record.chunk.document_id == source]
        candidates = of_document or records
        return candidates[0].handle if len(candidates) == 1 else None

    def replace(self, updates: Sequence[Update]) -> None:
        """Put documents in the place of what their ids named before.

        Embedding comes first and the catalog decides, so that at any moment, and after a crash, a
        document is found by its old text or by its new one.
        """
        old = set(self.catalog.chunk_ids(update.document.key for update in updates))
        chunks = [record.chunk for update in updates for record in update.records]
        vectors = self._embed([chunk for chunk in chunks if chunk.id not in old])
        vectors |= self.catalog.vectors(chunk.id for chunk in chunks if chunk.id in old)
        for update in updates:
            key, content, records = update.document.key, update.content_hash, update.records
            unfused = ((),) * len(records)
            known = {r.chunk.id: vectors[r.chunk.id] for r in records if r.chunk.id in vectors}
            self.manifests.write(Manifest(key, content, records, unfused, known))
            self.catalog.replace_document(key, content, records, known)
            self.manifests.forget_aside(key)
        self._index.remove(old - {chunk.id for chunk in chunks})
        self._note_change()

    def delete(
        self, documents: Iterable[DocumentKey], free: Callable[[], object] = lambda: None
    ) -> int:
        """Delete documents; returns how many there were.

        free: called once no text of them is known any more, to delete what was made of them. The
        index comes after it, for Chroma needs room to delete.
        """
        keys = list(documents)
        for key in keys:
            self.manifests.begin_delete(key)
        chunk_ids = self.catalog.chunk_ids(keys)
        deleted = self.catalog.delete_documents(keys)
        free()
        self._index.remove(chunk_ids)
        self.manifests.finish_deletes()
        self._note_change()
        return deleted

    @contextmanager
    def change(self, collect: Callable[[], object]) -> Iterator[None]:
        """A change; if the one before it was cut short, what that has left is put in order first.

        What it had begun to delete is deleted, and documents' files say again what the catalog
        says: links are noted once a whole ingest has fused, so that each file is written once.
        collect: called then, to delete what was made of texts that are gone.
        """
        note = self.path / UNFINISHED_FILE
        cut_short = note.exists() or self.manifests.deleting()
        with self._writable():
            touch_file(note)
        if cut_short:
            self.delete(self.manifests.deleted(self.catalog.documents()), collect)
            self._remove_strangers()
            for document in self.catalog.documents():
                with suppress(CatalogRowError):  # its file may be the only whole copy
                    self.note_links([document])
        yield
        with self._writable():
            remove_file(note)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"The store at {self.path} can't be written: {error}.") from error

    def live_keys(self) -> set[str]:
        """Keys of all KV in use, that of documents which the catalog doesn't know among it."""
        unknown = self.manifests.unknown(self.catalog.documents())
        of_unknown = {
            key
            for manifest in unknown
            for record in manifest.records
            for key in (record.isolated_key, record.fused_key)
        }
        return self.catalog.live_keys() | of_unknown

    def _note_change(self) -> None:
        self._seen = self.catalog.revision
        self.manifests.note_revision(self._seen, self.catalog.info.store_id)

    def embed_missing(self, progress: Progress) -> None:
        """Bring the index in line with the catalog: drop strangers, embed what is missing.

        Also chunks whose vectors the catalog has lost.
        """
        not_indexed = set(self.catalog.chunk_ids()) - self._remove_strangers()
        missing = sorted(not_indexed.union(self.catalog.without_vectors()))
        for start in range(0, len(missing), EMBEDDING_BATCH):
            progress("embed", start, len(missing))
            self._restore(missing[start : start + EMBEDDING_BATCH])
        progress("embed", len(missing), len(missing))

    def _remove_strangers(self) -> set[str]:
        """Remove from the index what the catalog doesn't know; returns the ids of what stays."""
        indexed, known = self._index.ids(), set(self.catalog.chunk_ids())
        self._index.remove(sorted(indexed - known))
        return indexed & known

    def note_links(self, documents: Iterable[DocumentKey]) -> None:
        """Write the manifests of documents whose chunks were fused, as the catalog has them."""
        for document in documents:
            self.manifests.write(manifest_of(self.catalog, document))

    def _restore(self, chunk_ids: Sequence[str]) -> None:
        """Put chunks into the index by the vectors that the catalog has; embed the others."""
        vectors = self.catalog.vectors(chunk_ids)
        records = self.catalog.records(chunk_ids)
        known = [record.chunk for chunk_id, record in records.items() if chunk_id in vectors]
        self._index.add(known, [vectors[chunk.id] for chunk in known])
        unknown = [record.chunk for chunk_id, record in records.items() if chunk_id not in vectors]
        self.catalog.set_vectors(self._embed(unknown))

    def _embed(self, chunks: Sequence[Chunk]) -> dict[str, list[float]]:
        """Put chunks into the index; returns their vectors, by chunk id."""
        vectors: dict[str, list[float]] = {}
        for start in range(0, len(chunks), EMBEDDING_BATCH):
            batch = chunks[start : start + EMBEDDING_BATCH]
            found = self._embedder.embed_documents([chunk.embedding_text for chunk in batch])
            made = [as_vector(vector) for vector in found]
            self._index.add(batch, made)
            vectors.update(zip((chunk.id for chunk in batch), made, strict=True))
        return vectors

    def similar(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        """The `k` chunks most similar to each chunk, of its own scope, nearest first."""
        if k == 0:
            return {chunk_id: [] for chunk_id in chunk_ids}
        return self._index.neighbours_many(chunk_ids, k)

    def similar_to(self, chunk: Chunk, k: int) -> list[str]:
        """The `k` chunks of its scope that are most similar to one that the index doesn't hold."""
        (vector,) = self._embedder.embed_documents([chunk.embedding_text])
        return [hit.chunk.id for hit in self.nearest(vector, k, scopes=[chunk.scope])]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Only one at a time may change a store, of all processes.

        Raises `StoreError` while another does, and where the store can't be written.
        """
        try:
            lock = locked(self.path / LOCK_FILE)
        except Timeout as error:
            raise StoreError(
                f"Another ingest or delete is changing the store at {self.path}. "
                "Wait for it to end."
            ) from error
        except OSError as error:
            raise StoreError(
                f"The store at {self.path} can't be written: {error}. Answering from it needs no "
                "writing."
            ) from error
        with lock:
            self._follow()
            self.manifests.note_info(self.catalog.info)
            try:
                yield
            finally:
                close_to_others(self.path / INDEX_DIRECTORY)

    def __deepcopy__(self, memo: object) -> Self:
        """Copies of a retriever share its corpus: files and threads have no copies."""
        return self

    def close(self) -> None:
        """Wait for what is under way, and release all files. May be called again.

        An index that was given stays open.
        """
        self.threads.close()
        self._opened.close()
        self.catalog.close()


def open_catalog(store: Path) -> Catalog:
    """The catalog of a store.

    Raises `StoreNotFoundError` where there is no store, `StoreError` where only the catalog is
    gone, or is another store's or older than the documents beside it, and as `Catalog.open`.
    """
    manifests = Manifests(store)
    noted = manifests.noted()  # before the catalog's, which may be raised meanwhile
    try:
        catalog = Catalog.open(store / CATALOG_FILE)
    except StoreNotFoundError:
        check_nothing_lost(store)
        raise
    named = Counter([catalog.info.store_id, *manifests.store_ids()])
    own = named.pop(catalog.info.store_id)
    if any(count >= own for count in named.values()):
        catalog.close()
        raise StoreError(
            f"The catalog of the store at {store} is another store's: store.json or "
            f"{DOCUMENTS_DIRECTORY} say so. Put this store's own back, or let `fusionrag repair` "
            "make it anew from the documents."
        )
    of_this_store = noted is not None and noted.store_id == catalog.info.store_id
    if noted and of_this_store and catalog.revision < noted.revision:
        catalog.close()
        raise StoreError(
            f"The store at {store} has a catalog that is older than its documents: they have "
            f"changed since, as they do where {CATALOG_FILE} is put back from a copy. `fusionrag "
            "repair` makes it anew from the documents."
        )
    return catalog


def is_store(path: Path) -> bool:
    """Whether a store is there, and not only what is left of one whose making was cut off.

    Raises as `open_catalog` where it can't be used.
    """
    try:
        open_catalog(path).close()
    except StoreNotFoundError:
        return False
    return True


def _open_index(store: Path, catalog: Catalog) -> ChunkIndex:
    """The index of a store. Raises `StoreError` where there is none of a store that has chunks."""
    directory = store / INDEX_DIRECTORY
    database = directory / DATABASE_FILE
    if catalog.counts().chunks and not (database.exists() and database.stat().st_size):
        raise _lost(store, catalog)
    return ChunkIndex(directory)


def _lost(store: Path, catalog: Catalog) -> StoreError:
    return StoreError(
        f"The index in {store / INDEX_DIRECTORY} has lost chunks: the catalog has "
        f"{catalog.counts().chunks}. `fusionrag repair` makes it anew from the catalog, without a "
        "model."
    )


def check_nothing_lost(store: Path) -> None:
    """Where there is no catalog, remains of a store are no empty place. Raises `StoreError`."""
    names = [*_BESIDE_THE_CATALOG, *(f"{name}.damaged" for name in _BESIDE_THE_CATALOG)]
    names += sorted(path.name for path in store.glob(f"{CATALOG_FILE}.*"))
    left = [name for name in names if _holds_anything(store / name)]
    if left:
        told = (
            "`fusionrag repair` makes it anew from the documents; a new store needs another "
            "directory."
            if _has_documents(store)
            else f"It {_WITHOUT_DOCUMENTS}"
        )
        raise StoreError(
            f"The store at {store} has lost its catalog: {CATALOG_FILE} is missing or empty beside "
            f"{', '.join(left)}. {told}"
        )


def check_documents(store: Path) -> None:
    """Raises `StoreError` where a store has no documents' files: they may be on another disk."""
    if not _has_documents(store):
        raise StoreError(f"The catalog of the store at {store} {_WITHOUT_DOCUMENTS}")


def _has_documents(store: Path) -> bool:
    directory = store / DOCUMENTS_DIRECTORY
    return directory.is_dir() and not directory.is_symlink() and _holds_anything(directory)


def _holds_anything(path: Path) -> bool:
    """Whether there is more than directories. A link may lead to what isn't there just now."""
    if path.is_symlink() or not path.is_dir():
        return os.path.lexists(path)
    try:
        return any(map(_holds_anything, path.iterdir()))
    except OSError:
        return True  # nobody can say that it is empty


def manifest_of(catalog: Catalog, document: DocumentKey) -> Manifest:
    """A document as the catalog has it."""
    records = tuple(catalog.records(catalog.chunk_ids([document])).values())
    neighbours = tuple(catalog.neighbours(record.chunk.id) for record in records)
    content = catalog.document_hash(document) or ""
    vectors = catalog.vectors(record.chunk.id for record in records)
    return Manifest(document, content, records, neighbours, vectors)


def group_passages(passages: Iterable[tuple[str, Passage]], scope: str) -> list[Document]:
    """One document a source, of its passages in the order given.

    passages: each with its source; those without text, such as a book's empty pages, are passed
    over, and logged. A document's title is the first in its passages' metadata.
    """
    by_source: dict[str, list[Passage]] = {}
    empty: Counter[str] = Counter()
    for source, passage in passages:
        of_source = by_source.setdefault(source, [])
        if passage.text.strip():
            of_source.append(passage)
        else:
            empty[source] += 1
    if empty:
        logger.warning(
            "%d passages without text are passed over, of %d sources, %r the first of them.",
            *(empty.total(), len(empty), next(iter(empty))),
        )
    documents: list[Document] = []
    for source, parts in by_source.items():
        titles = (part.metadata.get("title") for part in parts)
        title = next((title for title in titles if title and isinstance(title, str)), "")
        documents.append(Document(source, title=title, scope=scope, passages=tuple(parts)))
    return documents


def document_order(hits: Sequence[SearchHit]) -> list[SearchHit]:
    """Documents by their best hit; a document's chunks together, in their own order.

    A chunk may refer back to the one before it, so that one has to stand before it.
    """
    rank: dict[DocumentKey, int] = {}
    for hit in hits:
        rank.setdefault(hit.chunk.document, len(rank))
    return sorted(hits, key=lambda hit: (rank[hit.chunk.document], hit.chunk.index))
