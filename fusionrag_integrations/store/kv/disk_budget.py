"""The budgets of all tiers, and the files of a store within those of the disk."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from threading import RLock

from fusionrag_integrations.errors import InvalidInputError, StoreError
from fusionrag_integrations.store.kv.kv_record import KVRecord
from fusionrag_integrations.store.kv.lrfu import LRFUScores
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.kv.tier import Tier
from fusionrag_integrations.store.kv.types import ChunkKV
from fusionrag_integrations.support.inputs import check_fields

logger = logging.getLogger(__name__)

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes that each tier may hold; None for no bound.

    device: beside the model. disk: of this machine; for a store at a URL None is half of what is
    free there. captured: the part of the disk's that ad-hoc chunks may take. starts:
    on the device, of what prompts begin with, kept for those that begin the same; 0 keeps none.
    requests: on the device, of requests that are at work at once, while others wait; None: half of
    what is free there when the engine is opened. Raises `InvalidInputError` for less than 0.
    """

    device: int | None = 0
    host: int | None = 2 * GIB
    disk: int | None = None
    captured: int | None = GIB
    starts: int = GIB // 2
    requests: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for budget in (getattr(self, field.name) for field in fields(self)):
            if budget is not None and budget < 0:
                raise InvalidInputError(f"A budget is {budget} bytes; give 0 or more, or None.")


def free_for_copies(path: Path, copies: RecordStore) -> int:
    """Half of what is free on a store's disk, without the copies that are there already."""
    return (shutil.disk_usage(path).free + copies.size_bytes()) // 2


class DiskBudget:
    """Keeps the records on disk, as far as this process knows them, within budgets. Thread-safe.

    Ingested chunks are kept while there is room; ad-hoc chunks evict records with lower scores.
    Where files are copies of those that machines share, ingested chunks are kept there in any case,
    and here while nothing that is used more needs the room.
    """

    def __init__(
        self,
        store: RecordStore,
        budgets: Budgets,
        scores: LRFUScores,
        pinned: Counter[str],
        lock: RLock,
        forget: Callable[[str], None],
        copies: RecordStore | None = None,
    ) -> None:
        """lock: guards scores and pinned. forget: called under it with keys of changed records.

        copies: of the records that machines share; None where the disk has all there are.
        """
        self._store = store
        self._copies = copies
        self._scores = scores
        self._lock = lock
        self._forget = forget
        self._disk: Tier[None] = Tier(budgets.disk, scores, pinned, self._drop)
        self._adhoc: Tier[None] = Tier(budgets.captured, scores, pinned, self._drop)
        self._listed = False

    def tier(self) -> Tier[None]:
        """The tier of all records on disk."""
        with self._lock:
            self._list()
            return self._disk

    def holds(self, key: str) -> bool:
        """Whether a record is known to be on disk."""
        with self._lock:
            return key in self._disk

    def put(self, record: ChunkKV) -> bool:
        """Write a record if there is room; returns whether it is kept. Raises as `RecordStore`."""
        key, nbytes = record.key, self._store.file_bytes(record)
        with self._lock:
            self._list()
            new = key not in self._disk
            if self._copies is None and new and not self._disk.fits(nbytes):
                return False
            if self._copies is not None:
                self._scores.touch(key)
            kept = self._disk.admit(key, None, nbytes)
        self._write(self._store, record, new)
        if not kept and self._copies is not None:
            self._copies.delete(key)
        return True

    def lacks(self, key: str) -> bool:
        """Whether a record would have to be read from the storage that machines share."""
        with self._lock:
            if self._copies is None:
                return False
            self._list()
            return key not in self._disk

    def copy(self, record: KVRecord) -> None:
        """Keep a copy of a record that was read from there, if there is room for it."""
        if self._copies is None or not self.lacks(record.key):
            return
        with self._lock:
            if not self._disk.admit(record.key, None, record.header.file_bytes):
                return
        try:
            self._copies.copy(record)
        except StoreError as error:  # a full disk
            logger.info("KV is not copied to this machine: %s", error)
            with self._lock:
                self._disk.discard(record.key)

    def drop_copy(self, key: str) -> None:
        """Remove a copy that turned out to be damaged, so that the record itself is read."""
        if self._copies is not None:
            self.delete(key)

    def put_adhoc(self, record: ChunkKV) -> bool:
        """Like `put`, for an ad-hoc chunk: evicts records with lower scores."""
        key, nbytes = record.key, self._store.file_bytes(record)
        with self._lock:
            self._list()
            self._scores.touch(key)
            new = key not in self._disk
            if new:
                tiers = (self._adhoc, self._disk)
                if not all(tier.make_room(key, nbytes) for tier in tiers):
                    return False
                for tier in tiers:
                    tier.admit(key, None, nbytes)
        self._write(self._store if self._copies is None else self._copies, record, new)
        return True

    def mark_adhoc(self, keys: Iterable[str]) -> None:
        """Count these records, as far as they are on disk, as ad-hoc chunks'."""
        with self._lock:
            self._list()
            for key in keys:
                if key in self._disk:
                    self._adhoc.admit(key, None, self._disk.nbytes(key))

    def adhoc_keys(self) -> set[str]:
        """The keys of ad-hoc chunks' records."""
        with self._lock:
            return set(self._adhoc)

    def has_room_to_spare(self) -> bool:
        """Whether ad-hoc chunks take less than half of their budget."""
        with self._lock:
            budget = self._adhoc.budget
            return budget is None or 2 * self._adhoc.used < budget

    def delete(self, key: str) -> None:
        """Remove a record; nothing happens where there is none."""
        with self._lock:
            self._drop(key)

    def _write(self, store: RecordStore, record: ChunkKV, new: bool) -> None:
        """Write a record that is already counted; if that fails, a new one is discounted."""
        try:
            store.put(record)
        except BaseException:
            with self._lock:
                if new:
                    self._disk.discard(record.key)
                    self._adhoc.discard(record.key)
            raise
        with self._lock:
            self._forget(record.key)

    def _list(self) -> None:
        """List the files on disk, once; the last ones written get the highest scores."""
        if not self._listed:
            self._listed = True
            for key, nbytes in self._store.by_age():
                if key not in self._scores:
                    self._scores.touch(key)
                self._disk.admit(key, None, nbytes)

    def _drop(self, key: str) -> None:
        self._store.delete(key)
        self._forget(key)
        self._disk.discard(key)
        self._adhoc.discard(key)
        self._scores.forget(key)
