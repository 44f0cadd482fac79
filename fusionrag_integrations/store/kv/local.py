"""The files of KV records in a directory.

<directory>/ab/abcd....safetensors   the record with the key abcd...
<directory>/tmp/                     files being written, renamed into place when complete

Files are read, never memory-mapped: truncating a mapped file kills its reader.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

from fusionrag_integrations.errors import (
    InvalidInputError,
    KVCorruptError,
    KVMissingError,
    KVUnreadableError,
    StoreError,
)
from fusionrag_integrations.store.kv.base import KVFile, KVFileEntry, Part
from fusionrag_integrations.store.kv.record_format import is_key
from fusionrag_integrations.store.layout import DRAFTS_DIRECTORY
from fusionrag_integrations.support.atomic_files import (
    open_descriptor,
    read_into,
    remove_file,
    sweep,
    write_file,
)

SUFFIX = ".safetensors"
_NO_FILE = (errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)  # links, pipes, and so on
_SHARD = re.compile(r"[0-9a-f]{2}")


class LocalKVFiles:
    """`KVFiles` in a directory, which is created with the first file."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory).absolute()
        self._drafts = self.directory / DRAFTS_DIRECTORY
        sweep(self._drafts)

    def name_of(self, key: str) -> str:
        """A file's path."""
        return str(self.path_of(key))

    @contextmanager
    def open(self, key: str) -> Iterator[KVFile]:
        """Open a file: a regular one, and not through a link."""
        path = self.path_of(key)
        with _named_errors(path):
            descriptor = open_descriptor(path)
        try:
            yield _OpenFile(path, descriptor)
        finally:
            with suppress(OSError):  # all reads have succeeded
                os.close(descriptor)

    def write(self, key: str, parts: Sequence[bytes | memoryview]) -> None:
        """Write a file; when the call returns, it is on the disk."""
        path = self.path_of(key)
        try:
            write_file(path, parts, self._drafts)
        except OSError as error:
            raise StoreError(f"Can't write the KV record {path}: {error}") from error

    def delete(self, key: str) -> None:
        """Delete a file; nothing happens where there is none."""
        path = self.path_of(key)
        try:
            remove_file(path)
        except OSError as error:
            raise StoreError(f"Can't delete the KV record {path}: {error}") from error

    def existing(self, keys: Iterable[str]) -> set[str]:
        """Those of these keys that there are regular files of."""
        found: set[str] = set()
        for key in keys:
            path = self.path_of(key)
            with _listing(path), suppress(FileNotFoundError):
                if S_ISREG(path.lstat().st_mode):
                    found.add(key)
        return found

    def entries(self) -> Iterator[KVFileEntry]:
        """The files of all records; others are skipped."""
        for path in self.paths():
            if self.is_record(path):
                with _listing(path), suppress(FileNotFoundError):  # deleted since it was listed
                    facts = path.lstat()
                    if S_ISREG(facts.st_mode):
                        key = path.name.removesuffix(SUFFIX)
                        yield KVFileEntry(key, facts.st_size, facts.st_mtime)

    def path_of(self, key: str) -> Path:
        """Where a record's file is."""
        if not is_key(key):
            raise InvalidInputError(f"{key!r} is no key of a KV record; keys are lower-case hex.")
        return self.directory / key[:2] / f"{key}{SUFFIX}"

    def paths(self) -> list[Path]:
        """All paths in the directory but drafts, whether records or not; ascending."""
        found: list[Path] = []
        with _listing(self.directory):
            if not self.directory.is_dir():
                return []
            for entry in self.directory.iterdir():
                if entry.is_dir() and not entry.is_symlink() and _SHARD.fullmatch(entry.name):
                    found.extend(entry.iterdir())
                elif entry != self._drafts:
                    found.append(entry)
        return sorted(found)

    def is_record(self, path: Path) -> bool:
        """Whether a path is that of a record, whatever the file holds."""
        key = path.name.removesuffix(SUFFIX)
        return is_key(key) and path == self.path_of(key)

    def sweep(self) -> list[Path]:
        """Remove all drafts, however new: call it only while nothing is being written."""
        return sweep(self._drafts, 0.0)


class _OpenFile:
    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        with _named_errors(path):
            self.size = os.fstat(descriptor).st_size

    def read(self, parts: Sequence[Part]) -> int:
        with _named_errors(self._path):
            return sum(read_into(self._descriptor, buffer, offset) for buffer, offset in parts)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Raise the system's errors as a record's, naming the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise KVMissingError(f"There is no KV record {path}.") from error
    except OSError as error:
        if error.errno in _NO_FILE:
            raise KVCorruptError(f"{path} is damaged: it isn't a regular file.") from error
        raise KVUnreadableError(f"{path} can't be read: {error}") from error


@contextmanager
def _listing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} can't be listed: {error}") from error
