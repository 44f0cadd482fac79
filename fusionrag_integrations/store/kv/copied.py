"""The files of KV records that machines share, with copies on this machine's disk."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from fusionrag_integrations.errors import KVRecordError, StoreError
from fusionrag_integrations.store.kv.base import KVFile, KVFileEntry, KVFiles

logger = logging.getLogger(__name__)


class CopiedKVFiles:
    """`KVFiles` that are read from the copy, where there is one, and written to both.

    copies: those on this machine, which may be deleted at any time. `DiskBudget` keeps them within
    their budget. Deleting and listing here is of copies alone.
    """

    def __init__(self, copies: KVFiles, shared: KVFiles) -> None:
        self.copies = copies
        self._shared = shared

    def name_of(self, key: str) -> str:
        """What messages call the file that all machines see."""
        return self._shared.name_of(key)

    @contextmanager
    def open(self, key: str) -> Iterator[KVFile]:
        """Open the copy, or the file itself."""
        with ExitStack() as opened:
            try:
                file = opened.enter_context(self.copies.open(key))
            except KVRecordError:
                file = opened.enter_context(self._shared.open(key))
            yield file

    def write(self, key: str, parts: Sequence[bytes | memoryview]) -> None:
        """Write a file for all machines, and a copy if this one's disk has room."""
        self._shared.write(key, parts)
        try:
            self.copies.write(key, parts)
        except StoreError as error:
            logger.info("KV is not copied to this machine: %s", error)

    def delete(self, key: str) -> None:
        """Delete the copy; nothing happens where there is none."""
        self.copies.delete(key)

    def existing(self, keys: Iterable[str]) -> set[str]:
        """Those of these keys that all machines see files of."""
        return self._shared.existing(keys)

    def entries(self) -> Iterator[KVFileEntry]:
        """The copies."""
        return self.copies.entries()
