"""Reads of KV records that requests share while they are under way."""

from __future__ import annotations

from threading import Lock
from weakref import WeakValueDictionary

from fusionrag_integrations.store.protocol import KVReader
from fusionrag_integrations.types import ChunkKV


class SharedReads:
    """Reads a store so that requests which need a record at the same time read it once.

    It keeps no record by itself: one that no request holds any more is read anew. An error is
    each request's own, since the next read may succeed.
    """

    def __init__(self, store: KVReader) -> None:
        self._store = store
        self._guard = Lock()
        self._locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()
        self._held: WeakValueDictionary[str, ChunkKV] = WeakValueDictionary()

    def get(self, key: str) -> ChunkKV:
        """The whole record, checked, on the CPU. Raises as `KVReader.get` does."""
        with self._guard:
            lock = self._locks.get(key)
            if lock is None:
                lock = self._locks[key] = Lock()
        with lock:
            record = self._held.get(key)
            if record is None:
                record = self._held[key] = self._store.get(key)
            return record
