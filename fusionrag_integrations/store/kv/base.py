"""The port for the files of KV records, which may be stored anywhere.

`LocalKVFiles` keeps them in a store's directory. An implementation doesn't look into the files:
`RecordFiles` checks their content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

Part = tuple[memoryview, int]
"""A buffer, and the offset in a file from which it is to be filled."""


class KVFile(Protocol):
    """An open file. Raises `KVUnreadableError` where it can't be read."""

    @property
    def size(self) -> int | None:
        """In bytes; None where that would have to be asked for."""

    def read(self, parts: Sequence[Part]) -> int:
        """Fill these buffers, all at once where that is faster; returns how many bytes there were
        for them.
        """


class KVFileEntry(NamedTuple):
    """One file. modified: in seconds since the epoch."""

    key: str
    nbytes: int
    modified: float


class KVFiles(Protocol):
    """Files by key, for several threads and processes.

    Writes are atomic: an open file stays the same whatever is written or deleted meanwhile. Keys
    are lower-case hex; others raise `InvalidInputError`.
    """

    def name_of(self, key: str) -> str:
        """What messages call a key's file, such as its path."""

    def open(self, key: str) -> AbstractContextManager[KVFile]:
        """Open a file. Raises `KVMissingError`, `KVUnreadableError`, and `KVCorruptError` where it
        isn't a regular file.
        """

    def write(self, key: str, parts: Sequence[bytes | memoryview]) -> None:
        """Write a file, replacing an existing one. Raises `StoreError`."""

    def delete(self, key: str) -> None:
        """Delete a file; nothing happens where there is none. Raises `StoreError`."""

    def existing(self, keys: Iterable[str]) -> set[str]:
        """Those of these keys that there are files of. Raises `StoreError`."""
        ...

    def entries(self) -> Iterator[KVFileEntry]:
        """All files, by ascending key. Raises `StoreError`."""
