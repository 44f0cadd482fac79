"""One connection to a SQLite file for all threads: reopened after a fork, or where the file was
replaced; SQLite's errors as this package's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from fusionrag_integrations.errors import InvalidInputError, StoreClosedError, StoreError
from fusionrag_integrations.support.atomic_files import move_file
from fusionrag_integrations.support.batches import in_batches
from fusionrag_integrations.support.forks import Forkable

BATCH = 500  # parameters of one statement; SQLite may refuse more than 999
BUSY_SECONDS = 30.0  # how long to wait for another process's transaction


class Database(Forkable):
    """Everything raises `StoreError` where the file is damaged or locked for too long, and
    `StoreClosedError` once it is closed."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """connection: as `connect` makes it; closed with this."""
        self.path = path
        self._lock = RLock()
        self._closed = False
        self._connection: sqlite3.Connection | None = connection
        self._file = _file_at(path)  # that the connection is to
        super().__init__()

    def close(self) -> None:
        """Close the file, once no thread reads or writes. May be called again."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()

    def check_open(self) -> None:
        """Raises `StoreClosedError` once it is closed."""
        if self._closed:
            raise StoreClosedError.of(self.path.parent)

    def before_fork(self) -> None:
        """A forked child must neither use nor close SQLite's connections: both open new ones."""
        self._lock.acquire()
        self._disconnect()

    def after_fork(self) -> None:
        self._lock.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other thread reads or writes meanwhile."""
        with self._lock:
            yield

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commits at the end of the block, and rolls back where it raises."""
        with self._lock, named_errors(self.path), self._connected() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[Any]:
        with self._lock, named_errors(self.path):
            return self._connected().execute(query, parameters).fetchall()

    def column(self, query: str, parameters: Sequence[object] = ()) -> list[Any]:
        """The first value of each row."""
        return [row[0] for row in self.rows(query, parameters)]

    def rows_in(self, query: str, values: Iterable[str], *parameters: str) -> list[Any]:
        """Rows of a query with `IN ({})`, in batches; `parameters` come behind the list."""
        self.check_open()
        rows: list[Any] = []
        for batch in batches(list(dict.fromkeys(values))):
            rows += self.rows(query.format(", ".join("?" * len(batch))), (*batch, *parameters))
        return rows

    def replace(self, draft: Path) -> None:
        """Put another file in the place of this one. Raises `StoreError`."""
        with self._lock:
            self.check_open()
            self._disconnect()
            try:
                move_file(draft, self.path)
            except OSError as error:
                raise StoreError(f"The catalog {self.path} can't be replaced: {error}.") from error

    def _connected(self) -> sqlite3.Connection:
        """To the file that is there now: a repair puts another in its place."""
        self.check_open()
        found = _file_at(self.path)
        if found not in (None, self._file):
            self._disconnect()
        if self._connection is None:
            with connect(self.path, "rw") as db:
                self._connection, self._file = db, found
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def batches(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many at once as one statement may have parameters."""
    return in_batches(values, BATCH)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as `StoreError`, and text that isn't Unicode as `InvalidInputError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(
            f"The catalog {path} can't be used: {error}. If it is damaged, `fusionrag repair` "
            "rebuilds it."
        ) from error
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"A text can't be stored: {error}. Remove or replace lone surrogates."
        ) from error


@contextmanager
def connect(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection in autocommit mode, which is closed only if the block raises."""
    if path.is_symlink():
        raise StoreError(f"{path} is a symbolic link, which is not followed. Put the file there.")
    with named_errors(path):
        # One connection under a lock serves all threads: statements here take well under 1 ms.
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # Damaged text is read all the same: its checksum shows it.
            db.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = ON")  # free pages are published with the others
            yield db
        except BaseException:
            db.close()
            raise


def _file_at(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file at a path; None where there is none just now."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
