"""Chunk ids by similarity: a Chroma collection whose embeddings are made by the caller.

Chroma is imported when a directory is opened, so that an engine with another index needs none.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from math import isfinite
from pathlib import Path
from tempfile import mkdtemp
from threading import RLock
from time import monotonic, sleep
from typing import Any, ClassVar
from weakref import finalize

import numpy as np

from fusionrag_integrations.durable import DIRECTORY_MODE
from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreClosedError,
    StoreError,
    StoreMismatchError,
)
from fusionrag_integrations.forks import Forkable
from fusionrag_integrations.inputs import shown
from fusionrag_integrations.threads import Closable
from fusionrag_integrations.types import Chunk, MetadataValue

_COLLECTION = "chunks"
# Chroma's graph is approximate; this width finds the true neighbours in collections of thousands.
_HNSW = {"space": "cosine", "ef_construction": 200, "ef_search": 200, "max_neighbors": 32}
_QUERIES_AT_ONCE = 256
DATABASE_FILE = "chroma.sqlite3"  # Chroma's own, in the directory
_MOST = 1 << 30  # results that Chroma can be asked for
# Of equally near chunks Chroma finds others each time it opens a directory; among so many more
# than were asked for, ours come by their ids.
_TIES = 16
_openings = count()
_SETTLING = 0.5  # seconds that threads of a closed client may take to end
# Bytes of the disk without which Chroma is not asked to write: where it finds none, it may hang.
_INTEGER_BITS = 64  # of SQLite's
_ROOM = 1 << 20
_GROWTH = 8  # bytes that a byte of text or vector may take, with tables to search it and journals


class ChunkIndex(Forkable, Closable):
    """Embeddings of chunks in a directory, created where there is none.

    One that is read-only, or on a full disk, is searched in a temporary copy, since Chroma writes
    even to search.

    Vectors all have the length of the first one that was added; scores are cosine similarity,
    higher is nearer. Every method raises StoreError where the directory can't be read or
    written, and StoreClosedError once the index is closed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._lock = RLock()  # nobody may ask while the directory is being opened anew
        self._closed = False
        self._open()
        super().__init__()

    def _open(self) -> None:
        _Chroma.check()
        directory = self._directory
        for path in (directory, *directory.rglob("*")):
            if path.is_symlink():
                raise StoreError(
                    f"{path} is a symbolic link, which is not followed. Put the index itself "
                    "there, or delete the link: `fusionrag index` embeds the chunks anew."
                )
        # A directory that failed to open half is answered with one of these.
        with self._named_errors(AttributeError, KeyError, ValueError):
            copy = None if _is_writable(directory) else _copied(directory)
            self._is_copy = copy is not None
            if copy is None:
                directory.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
            try:
                self._client: Any = _opened(copy or directory.resolve())
            except BaseException:
                _removed(copy)
                raise
            # Chroma keeps its own reference, so that collecting ours alone would close nothing.
            self._release = finalize(self, _close_client, self._client, copy)
            try:
                self._collection: Any = self._client.get_or_create_collection(
                    _COLLECTION, embedding_function=None, configuration={"hnsw": _HNSW}
                )
            except BaseException:
                self._release()
                raise
            self._is_read = self._is_old = False

    def refresh(self) -> None:
        """Read the directory anew, when it is used next.

        Chroma never sees by itself what another process has written.
        """
        with self._lock:
            self._is_old = True

    def _reopen(self) -> None:
        self._drop_client()
        self._open()

    def hold(self) -> None:
        """Chroma must not be open in a process that forks: parent and child open it when needed.

        A child can neither use nor close it, for want of its threads.
        """
        self._lock.acquire()
        self._drop_client()

    def release(self) -> None:
        self._lock.release()

    def _drop_client(self) -> None:
        """Whoever uses the index next opens the directory, even where opening it failed before."""
        self._release()
        self._client = self._collection = None

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
        texts = sum(len(chunk.text.encode()) for chunk in chunks)
        numbers = sum(len(vector) for vector in embeddings)
        with self._writing(texts + 4 * numbers):
            for part in self._batches(len(chunks)):
                self._collection.upsert(
                    ids=[chunk.id for chunk in chunks[part]],
                    embeddings=list(unit_rows(embeddings[part])),
                    documents=[chunk.text for chunk in chunks[part]],
                    metadatas=[shown_metadata(chunk) for chunk in chunks[part]],
                )
                if not self._is_read:
                    self._reopen()
                    self._read()

    def remove(self, chunk_ids: Iterable[str]) -> None:
        """Remove chunks; ids that aren't in the index are passed over."""
        ids = list(chunk_ids)
        with self._writing():
            for part in self._batches(len(ids)):
                self._collection.delete(ids=ids[part])

    def search(
        self,
        embedding: Sequence[float],
        k: int,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[tuple[str, float]]:
        """The ids and scores of the `k` nearest chunks, best first, equal scores by id.

        Of some scopes, or of all (None); fewer where there are fewer. where: a filter on metadata
        in Chroma's terms, such as {"page": {"$gt": 3}}; several keys must all hold. Raises
        InvalidInputError where k < 1 or the filter can't be, and StoreMismatchError where the
        vector's length isn't the index's.
        """
        check_k(k)
        k = min(k, _MOST)
        conditions: list[dict[str, Any]] = []
        if scopes is not None:
            if not scopes:
                return []
            conditions.append({"scope": {"$in": list(scopes)}})
        if where:
            conditions.append(_checked_filter(where))
        return self._query([embedding], k, _all_of(conditions))[0]

    def matching(self, where: Mapping[str, Any]) -> set[str]:
        """The ids of the chunks that a filter holds for, as `search` takes it."""
        with self._errors():
            return set(self._collection.get(where=_checked_filter(where), include=[])["ids"])

    def entries(
        self, chunk_ids: Sequence[str]
    ) -> dict[str, tuple[Sequence[float], Mapping[str, MetadataValue]]]:
        """Vector and metadata of chunks by their ids; ids that aren't in the index are left out."""
        with self._errors():
            rows = self._collection.get(ids=list(chunk_ids), include=["embeddings", "metadatas"])
        pairs = zip(rows["embeddings"], rows["metadatas"], strict=True)
        return dict(zip(rows["ids"], pairs, strict=True))

    def neighbours_many(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        """For each chunk the `k` most similar others of its own scope, nearest first.

        Raises InvalidInputError where k < 1, and StoreError where a chunk isn't in the index.
        """
        check_k(k)
        neighbours: dict[str, list[str]] = {}
        for part in self._batches(len(chunk_ids), _QUERIES_AT_ONCE):
            for scope, stored in self._stored(chunk_ids[part]).items():
                # One more than asked for, since a chunk usually finds itself.
                results = self._query(list(stored.values()), k + 1, {"scope": scope})
                for chunk_id, nearest in zip(stored, results, strict=True):
                    neighbours[chunk_id] = [i for i, _ in nearest if i != chunk_id][:k]
        return neighbours

    def close(self) -> None:
        """Release the directory's files, once nobody searches. May be called again."""
        with self._lock, self._named_errors():
            self._closed = True
            self._release()

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
        self, embeddings: Sequence[Sequence[float]], k: int, where: dict[str, Any] | None
    ) -> list[list[tuple[str, float]]]:
        with self._errors():
            found = self._collection.query(
                query_embeddings=list(unit_rows(embeddings)),
                n_results=k + _TIES,
                where=where,
                include=["distances"],
            )
        return [
            sorted(
                ((chunk_id, 1.0 - distance) for chunk_id, distance in zip(*row, strict=True)),
                key=lambda hit: (-hit[1], hit[0]),
            )[:k]
            for row in zip(found["ids"], found["distances"], strict=True)
        ]

    def _batches(self, count: int, size: int | None = None) -> Iterator[slice]:
        size = size or int(self._client.get_max_batch_size())
        return (slice(start, start + size) for start in range(0, count, size))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Use Chroma, one thread at a time."""
        with self._lock, self._named_errors():
            if self._closed:
                raise StoreClosedError.of(self._directory.parent)
            if self._is_old:
                self._drop_client()
            if self._client is None:
                self._open()
            _Chroma.use()
            yield

    def _read(self) -> None:
        """Chroma writes far slower to an index that it has not read since it was opened."""
        self._is_read = bool(self._collection.get(limit=1, include=["embeddings"])["ids"])

    @contextmanager
    def _writing(self, nbytes: int = 0) -> Iterator[None]:
        """Use Chroma to write so much in the directory itself, where there is room for it."""
        with self._errors():
            needed = _ROOM + _GROWTH * nbytes
            if (free := shutil.disk_usage(self._directory).free) < needed:
                reason = f"{os.strerror(errno.ENOSPC)}: {free:,} bytes of {needed:,} are free"
                raise OSError(errno.ENOSPC, reason)
            if self._is_copy:
                self._reopen()
            if not self._is_read:
                self._read()
            yield

    @contextmanager
    def _named_errors(self, *others: type[Exception]) -> Iterator[None]:
        """Chroma's errors, the system's and `others` as ours, with the directory."""
        from chromadb.errors import ChromaError, InvalidArgumentError

        try:
            yield
        except InvalidArgumentError as error:
            if "dimension" in str(error):
                raise of_another_embedding(self._directory.parent, error) from error
            what = "A filter" if "where" in str(error) else "An embedding"
            raise InvalidInputError(f"{what} can't be used: {error}.") from error
        except (ChromaError, OSError, *others) as error:
            raise StoreError(
                f"The index in {self._directory} can't be used: {error}. If it is damaged, "
                "`fusionrag repair` makes it anew."
            ) from error


def _new_name(path: str) -> str:
    """The path in a spelling that was not used before.

    Chroma keeps one view of a directory for each name it is opened by, and a view grows old.
    """
    return path + "".join("//." if bit == "1" else "/." for bit in f"{next(_openings):b}")


def _is_writable(directory: Path) -> bool:
    """True of one that is yet to be made, too: making it will tell."""
    if not directory.is_dir():
        return True
    effective = os.access in os.supports_effective_ids
    allowed = os.access(directory, os.W_OK, effective_ids=effective)
    return allowed and shutil.disk_usage(directory).free >= _ROOM


def _copied(directory: Path) -> Path:
    """A writable copy in a temporary directory."""
    copy = Path(mkdtemp(prefix="fusionrag-index-"))
    try:
        for file in directory.rglob("*"):
            if file.is_file():
                target = copy / file.relative_to(directory)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    except BaseException:
        _removed(copy)
        raise
    return copy


def _removed(copy: Path | None) -> None:
    if copy is not None:
        shutil.rmtree(copy, ignore_errors=True)


def _opened(directory: Path) -> Any:
    """A client of Chroma's over a directory."""
    import chromadb
    from chromadb.config import Settings

    return chromadb.PersistentClient(
        path=_new_name(str(directory)), settings=Settings(anonymized_telemetry=False)
    )


class _Chroma:
    """Chroma's own threads: one pool a process, which begins with the first use of a collection.

    In a child that is forked afterwards they are gone, and whatever needs them waits for ever.
    """

    process: ClassVar[int | None] = None  # whose pool it is

    @classmethod
    def check(cls) -> None:
        """Raises StoreError where the pool was left behind in the parent."""
        if cls.process not in (None, os.getpid()):
            raise StoreError(
                "Chroma can't be used in this process: it was forked from one that had searched "
                "or changed an index. Search in the parent only after all workers are forked, or "
                "start workers by 'spawn'."
            )

    @classmethod
    def use(cls) -> None:
        """The same; from here on the pool is this process's."""
        cls.check()
        cls.process = os.getpid()


def _close_client(client: Any, copy: Path | None) -> None:
    """Close a client, and wait until its threads have ended.

    They hold SQLite's locks meanwhile, which would stay locked in a child that is forked just then.
    """
    client.close()
    _removed(copy)
    before, deadline = -1, monotonic() + _SETTLING
    while (now := _native_threads()) != before and monotonic() < deadline:
        before = now
        sleep(0.01)


def _native_threads() -> int:
    """How many threads this process has, Chroma's among them; 0 where the system doesn't tell."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0


def shown_metadata(chunk: Chunk) -> dict[str, MetadataValue]:
    """What Chroma keeps beside a chunk, to filter by: all of it stands in the chunk's id.

    Values that Chroma can't hold can't be filtered by, but the catalog has them: lists, numbers
    that aren't finite, integers of more than 64 bits.
    """
    shown = {"document_id": chunk.document_id, "title": chunk.title, **chunk.metadata}
    filtered = {f"metadata_{key}": value for key, value in shown.items() if _is_shown(value)}
    return {**filtered, "scope": chunk.scope}


def _is_shown(value: MetadataValue) -> bool:
    if isinstance(value, int):
        return value.bit_length() < _INTEGER_BITS
    return isinstance(value, str) or (isinstance(value, float) and isfinite(value))


def unit_rows(vectors: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Vectors as rows of length 1, float32 [vectors, dimensions]; zeros stay zeros."""
    # Squares of small and large numbers are beyond float32.
    rows = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths, lengths, 1.0)).astype(np.float32)


def _checked_filter(where: Mapping[str, Any]) -> dict[str, Any]:
    from chromadb.api.types import validate_where

    try:
        condition = _stored_names(where)
        validate_where(condition)
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The filter {shown(where)} can't be used: {error}. Give metadata entries such as "
            '{"page": 7} or {"page": {"$gt": 3}}, joined by "$and" or "$or".'
        ) from error
    return condition


def _stored_names(where: Mapping[str, Any]) -> dict[str, Any]:
    """A filter on the user's names as one on the names that the index keeps them under."""
    conditions: list[dict[str, Any]] = []
    for key, condition in where.items():
        if key.startswith("$"):
            parts = [_stored_names(part) for part in condition]
            conditions.append(parts[0] if len(parts) == 1 else {key: parts})
        else:
            conditions.append({f"metadata_{key}": condition})
    return _all_of(conditions) or {}


def _all_of(conditions: list[dict[str, Any]]) -> dict[str, Any] | None:
    return conditions[0] if len(conditions) == 1 else {"$and": conditions} if conditions else None


def of_another_embedding(store: Path, reason: object) -> StoreMismatchError:
    """The error for a vector that no vector of the store can be compared with."""
    return StoreMismatchError(
        f"The store at {store} was made by another embedding: {reason}. Use the embedding that it "
        "was made with, or make a new store."
    )


def check_k(k: int) -> None:
    """Raises InvalidInputError where `k` chunks can't be asked for."""
    if k < 1:
        raise InvalidInputError(f"k is {k}; it must be at least 1.")
