"""The port for the files of KV records, which may be stored anywhere.

`LocalKVFiles` keeps them in a store's directory. An implementation doesn't look into the files:
`RecordFiles` checks their content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol


class KVFile(Protocol):
    """An open file. Raises `KVUnreadableError` where it can't be read."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Read into the buffer from `offset` on; returns how many bytes there were."""


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

    def entries(self) -> Iterator[KVFileEntry]:
        """All files, by ascending key. Raises `StoreError`."""
