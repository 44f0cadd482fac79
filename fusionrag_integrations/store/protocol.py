"""What the engine asks of a store of KV records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fusionrag_integrations.types import ChunkKV


class KVReader(Protocol):
    """Reads KV records by key."""

    def get(self, key: str) -> ChunkKV:
        """The whole record, checked, on the CPU.

        Raises `KVMissingError`, `KVCorruptError` or `KVForeignError`.
        """
        ...


class KVStore(KVReader, Protocol):
    """KV records by key. Safe to use from several threads and processes at once."""

    def put(self, record: ChunkKV) -> None:
        """Keep a record under its key, in the place of one that is there. All or nothing."""
        ...

    def contains(self, key: str) -> bool:
        """Whether there is a record under this key; it isn't read, so it may be damaged."""
        ...

    def delete(self, key: str) -> None:
        """Remove a record; nothing happens where there is none."""
        ...

    def keys(self) -> Iterator[str]:
        """The keys of all records, ascending."""
        ...

    def size_bytes(self) -> int:
        """Bytes that all records take."""
        ...
