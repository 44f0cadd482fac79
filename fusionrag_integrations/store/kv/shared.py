"""The files of KV records in a storage that several machines share.

kv/ab/abcd....safetensors   the record with the key abcd...

A key stands for one content, so a file is written once and never replaced; who deletes it is
`published/collecting.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from time import monotonic

from fusionrag_integrations.errors import (
    InvalidInputError,
    KVMissingError,
    KVUnreadableError,
    StoreUnreachableError,
)
from fusionrag_integrations.store.kv.base import KVFile, KVFileEntry, Part
from fusionrag_integrations.store.kv.local import SUFFIX
from fusionrag_integrations.store.kv.record_files import FIRST_READ
from fusionrag_integrations.store.kv.record_format import is_key
from fusionrag_integrations.store.layout import KV_DIRECTORY
from fusionrag_integrations.store.objects.base import Objects

_BEGINNINGS = 256  # of the last files opened, which are opened again for each group of layers
_REST = 5.0  # seconds for which a storage isn't asked again that couldn't be reached


class SharedKVFiles:
    """`KVFiles` among the objects at a URL. Files are read by ranges, several at once."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._lock = Lock()
        self._beginnings: OrderedDict[str, bytes] = OrderedDict()
        self._away_until = 0.0

    def name_of(self, key: str) -> str:
        """A file's URL."""
        return f"{self._objects.url}/{object_name(key)}"

    @contextmanager
    def open(self, key: str) -> Iterator[KVFile]:
        """Open a file, whose beginning is read."""
        name = object_name(key)
        with self._lock:
            beginning = self._beginnings.get(key)
        if beginning is None:
            (beginning,) = self.read_ranges(name, [range(FIRST_READ)])
            with self._lock:
                self._beginnings[key] = beginning
                while len(self._beginnings) > _BEGINNINGS:
                    self._beginnings.popitem(last=False)
        try:
            yield _SharedFile(self, name, beginning)
        except BaseException:
            with self._lock:  # it may be damaged, and be written again
                self._beginnings.pop(key, None)
            raise

    def write(self, key: str, parts: Sequence[bytes | memoryview]) -> None:
        """Write a file; when the call returns, all machines see it."""
        self._objects.write(object_name(key), parts)

    def delete(self, key: str) -> None:
        """Delete a file; nothing happens where there is none."""
        with self._lock:
            self._beginnings.pop(key, None)
        self._objects.delete([object_name(key)])

    def existing(self, keys: Iterable[str]) -> set[str]:
        """Those of these keys that there are files of, asked one by one."""
        names = {object_name(key): key for key in keys}
        return {names[name] for name in self._objects.existing(names)}

    def entries(self) -> Iterator[KVFileEntry]:
        """All files, by listing the storage."""
        found = []
        for entry in self._objects.entries(KV_DIRECTORY):
            key = entry.name.rpartition("/")[2].removesuffix(SUFFIX)
            if is_key(key) and entry.name == object_name(key):
                found.append(KVFileEntry(key, entry.nbytes, entry.modified))
        return iter(sorted(found))

    def read_ranges(self, name: str, ranges: Sequence[range]) -> list[bytes]:
        """Ranges of an object. While the storage is away, requests don't wait for it each time."""
        if monotonic() < self._away_until:
            raise KVUnreadableError(f"{self._objects.url} couldn't be reached a moment ago.")
        try:
            return self._objects.read_ranges(name, ranges)
        except FileNotFoundError as error:
            raise KVMissingError(f"There is no KV record {self._objects.url}/{name}.") from error
        except StoreUnreachableError as error:
            self._away_until = monotonic() + _REST
            raise KVUnreadableError(str(error)) from error


class _SharedFile:
    size = None

    def __init__(self, files: SharedKVFiles, name: str, beginning: bytes) -> None:
        self._files = files
        self._name = name
        self._beginning = beginning

    def read(self, parts: Sequence[Part]) -> int:
        known = len(self._beginning)
        is_whole = known < FIRST_READ
        total = 0
        asked: list[Part] = []
        for buffer, offset in parts:
            if is_whole or offset + len(buffer) <= known:
                total += _put(self._beginning[offset : offset + len(buffer)], buffer)
            elif len(buffer):
                asked.append((buffer, offset))
        if asked:
            ranges = [range(offset, offset + len(buffer)) for buffer, offset in asked]
            found = self._files.read_ranges(self._name, ranges)
            total += sum(_put(part, buffer) for part, (buffer, _) in zip(found, asked, strict=True))
        return total


def _put(found: bytes, buffer: memoryview) -> int:
    buffer[: len(found)] = found
    return len(found)


def object_name(key: str) -> str:
    """The name of a record's object."""
    if not is_key(key):
        raise InvalidInputError(f"{key!r} is no key of a KV record; keys are lower-case hex.")
    return f"{KV_DIRECTORY}/{key[:2]}/{key}{SUFFIX}"
