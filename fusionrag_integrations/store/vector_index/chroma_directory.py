"""The connection to Chroma's files in a directory: opened, reopened and closed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import finalize

from fusionrag_integrations.errors import StoreClosedError, StoreError, StoreMismatchError
from fusionrag_integrations.store.vector_index.chroma_connection import (
    HNSW,
    Limits,
    named_arguments,
)
from fusionrag_integrations.store.vector_index.chroma_files import (
    check_no_links,
    check_room,
    is_writable,
    remove_copy,
    temporary_copy,
)
from fusionrag_integrations.store.vector_index.chroma_process import (
    ThreadPool,
    close_client,
    open_client,
)
from fusionrag_integrations.store.vector_index.entries import OwnEntries
from fusionrag_integrations.store.vector_index.vectors import embedding_mismatch
from fusionrag_integrations.support.atomic_files import DIRECTORY_MODE
from fusionrag_integrations.support.forks import Forkable
from fusionrag_integrations.support.threads import Closable

_COLLECTION = "chunks"
_ALL = OwnEntries()


class ChromaDirectory(Forkable, Closable):
    """The collection in a directory, used by one thread at a time.

    The directory is created if missing. A read-only one, or one on a full disk, is read in a
    temporary copy, since Chroma writes even to search. All methods raise `StoreError` where the
    directory can't be used, and `StoreClosedError` once the client is closed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._lock = RLock()  # held by users of the collection, and while it is reopened
        self._closed = False
        self._open()
        super().__init__()

    @contextmanager
    def reading(self) -> Iterator[tuple[Any, OwnEntries]]:
        """See `ChromaConnection.reading`. Chroma's errors are raised as this package's."""
        with self._lock, self._named_errors():
            self._check_open()
            if self._is_old:
                self._drop_client()
            if self._client is None:
                self._open()
            ThreadPool.use()
            yield self._collection, _ALL

    @contextmanager
    def writing(self, nbytes: int = 0) -> Iterator[tuple[Any, OwnEntries]]:
        """See `ChromaConnection.writing`. Raises `StoreError` where there is no room."""
        with self.reading():
            check_room(self.directory, nbytes)
            if self._is_copy:
                self._reopen()  # there may be room now
            if self._is_copy:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            # Chroma writes far more slowly to an index that it hasn't read since opening it.
            if not self._is_read:
                self._read()
            yield self._collection, _ALL
            if not self._is_read:  # it was empty before
                self._reopen()
                self._read()

    def limits(self) -> Limits:
        """See `ChromaConnection.limits`."""
        with self.reading():
            return Limits(int(self._client.get_max_batch_size()))

    def mismatch(self, reason: object) -> StoreMismatchError:
        """See `ChromaConnection.mismatch`."""
        return embedding_mismatch(self.directory.parent, reason)

    def refresh(self) -> None:
        """Reopen the directory before its next use, to see what other processes have written."""
        with self._lock:
            self._check_open()
            self._is_old = True

    def close(self) -> None:
        """Close the directory's files, once no thread uses them. May be called again."""
        with self._lock, self._named_errors():
            self._closed = True
            self._release()

    def before_fork(self) -> None:
        """Close Chroma, which parent and child reopen when they need it.

        A child could neither use nor close it, since it doesn't have Chroma's threads.
        """
        self._lock.acquire()
        self._drop_client()

    def after_fork(self) -> None:
        self._lock.release()

    def _open(self) -> None:
        ThreadPool.check()
        check_no_links(self.directory)
        # These are what Chroma raises after it has failed to open a directory before.
        with self._named_errors(AttributeError, KeyError, ValueError):
            copy = None if is_writable(self.directory) else temporary_copy(self.directory)
            self._is_copy = copy is not None
            if copy is None:
                self.directory.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
            try:
                self._client: Any = open_client(copy or self.directory.resolve())
            except BaseException:
                remove_copy(copy)
                raise
            # Chroma keeps a reference of its own, so that garbage collection alone closes nothing.
            self._release = finalize(self, _close, self._client, copy)
            try:
                self._collection: Any = self._client.get_or_create_collection(
                    _COLLECTION, embedding_function=None, configuration={"hnsw": HNSW}
                )
            except BaseException:
                self._release()
                raise
            self._is_read = self._is_old = False

    def _reopen(self) -> None:
        self._drop_client()
        self._open()

    def _drop_client(self) -> None:
        """Close the client; the next use of the collection opens another one."""
        self._release()
        self._client = self._collection = None

    def _read(self) -> None:
        self._is_read = bool(self._collection.get(limit=1, include=["embeddings"])["ids"])

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError.of(self.directory.parent)

    @contextmanager
    def _named_errors(self, *others: type[Exception]) -> Iterator[None]:
        """Raise Chroma's errors, the system's and `others` as this package's, naming the path."""
        try:
            with named_arguments(self):
                yield
        except Exception as error:
            from chromadb.errors import ChromaError  # not while Python ends

            if not isinstance(error, (ChromaError, OSError, *others)):
                raise
            raise StoreError(
                f"The index in {self.directory} can't be used: {error}. If it is damaged, "
                "`fusionrag repair` rebuilds it."
            ) from error


def _close(client: Any, copy: Path | None) -> None:
    close_client(client)
    remove_copy(copy)
