"""Three tiers of KV records: files, host memory, and the model's device.

Below them, for a store at a URL, is the storage that machines share.

A request holds a `Lease`. Each record is served from the fastest tier that has it. One that is read
from disk goes into host memory, and when its request ends, to the device if there is room.

shared storage --loader--> host memory, and a copy on this machine's disk
disk --loader--> host memory, in the file's format --to_device--> device, rotated to its chunk
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from time import perf_counter_ns
from weakref import WeakValueDictionary

import torch

from fusionrag_integrations.errors import (
    KVCorruptError,
    KVForeignError,
    KVMissingError,
    KVRecordError,
)
from fusionrag_integrations.store.corrections import Correction
from fusionrag_integrations.store.kv.disk_budget import Budgets, DiskBudget
from fusionrag_integrations.store.kv.kv_record import KVRecord
from fusionrag_integrations.store.kv.lease import Lease
from fusionrag_integrations.store.kv.loader import Load, Loader, LoaderEvents
from fusionrag_integrations.store.kv.lrfu import LRFUScores
from fusionrag_integrations.store.kv.metrics import StoreMetrics, store_metrics
from fusionrag_integrations.store.kv.record_format import is_key
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.kv.tier import Tier
from fusionrag_integrations.store.kv.types import ChunkKV, LayeredKV
from fusionrag_integrations.support.forks import Forkable
from fusionrag_integrations.support.threads import Closable

# A use counts half after this many uses of any records. With 3,000 records, room for 300 and a
# drifting Zipf's law, hit rates with 1,024 to 65,536 differ by up to 4 points; LRU's are 3 to 9
# points lower.
HALF_LIFE = 4096

MoveToDevice = Callable[[LayeredKV, Correction | None], ChunkKV]


@dataclass(frozen=True, slots=True, eq=False)
class _Resident:
    """A record on the device, with the correction that was added to it."""

    kv: ChunkKV
    correction: Correction | None


class TieredKV(Forkable, Closable):
    """KV records of one store, shared by requests in several threads.

    disk: the files, with those of ad-hoc chunks. Reading and writing raise `StoreClosedError` once
    this is closed.
    """

    def __init__(
        self,
        path: Path,
        store: RecordStore,
        budgets: Budgets,
        device: torch.device,
        to_device: MoveToDevice,
        copies: RecordStore | None = None,
    ) -> None:
        """path: the store's directory, for messages. to_device: moves a record to `device`, in the
        form that requests attend to in place, with a correction added. copies: on this machine, of
        records that machines share.
        """
        self.path = path
        self._store = store
        self._page_locked = device.type == "cuda"
        self._to_device = to_device
        self._lock = RLock()
        self._scores = LRFUScores(HALF_LIFE)
        self._pin_counts: Counter[str] = Counter()
        self._device: Tier[_Resident] = Tier(budgets.device, self._scores, self._pin_counts)
        self._host: Tier[KVRecord] = Tier(budgets.host, self._scores, self._pin_counts)
        self.disk = DiskBudget(
            store, budgets, self._scores, self._pin_counts, self._lock, self._forget, copies
        )
        self._is_shared = copies is not None
        self._unopened: dict[str, Load] = {}  # whose headers aren't read yet
        self._active: WeakValueDictionary[str, Load] = WeakValueDictionary()
        self._alive: WeakValueDictionary[str, KVRecord] = (
            WeakValueDictionary()
        )  # by tier or request
        self._counts: Counter[str] = Counter()
        self._loader = self._new_loader()
        super().__init__()

    # For requests.

    def prefetch(self, keys: Iterable[str]) -> None:
        """Begin to read the records that are in no memory yet, without waiting for them.

        Missing and damaged records raise only when a request asks for them; invalid keys are
        ignored.
        """
        with self._lock:
            for key in filter(is_key, keys):
                self._prefetch(key)

    def lease(self) -> Lease:
        """A lease, which a request holds while it uses records."""
        return Lease(self)

    def prefetch_pinned(self, key: str) -> None:
        """Like `prefetch`, of one record, which is pinned until `release`."""
        with self._lock:
            self._pin_counts[key] += 1
            self._prefetch(key)

    def acquire(self, key: str, correction: Correction | None = None) -> LayeredKV:
        """A record, pinned until `release`, even if this raises. Its layers may not be read yet.

        correction: what the request adds to it. From the device (`rotated`) it comes with that;
        from elsewhere as it is stored. Raises as `RecordStore.get` does.
        """
        with self._lock:
            self._pin_counts[key] += 1
            self._scores.touch(key)
            resident = self._device.get(key)
            if resident is not None and resident.correction is correction:
                self._counts["device hits"] += 1
                return resident.kv
            if (record := self._in_memory(key)) is not None:
                self._counts["host hits"] += 1
                return record
            load = self._load(key)
        record = load.record()
        with self._lock:
            self._counts[f"{_source(load)} hits"] += 1
        return record

    def at_hand(self, keys: Iterable[str]) -> bool:
        """Whether all of these are in memory, so that `acquire` waits for no disk."""
        with self._lock:
            return all(key in self._device or self._in_memory(key) is not None for key in keys)

    def release(self, keys: Iterable[str], corrections: Mapping[str, Correction]) -> None:
        """Unpin records, once per time they were acquired, and move them up to the device.

        corrections: by key, what was added to them.
        """
        acquired = list(keys)
        with self._lock:
            for key in acquired:
                self._pin_counts[key] -= 1
                if not self._pin_counts[key]:
                    del self._pin_counts[key]
                    self._cancel_unused(key)
        for key in dict.fromkeys(acquired):
            self._promote(key, corrections.get(key))

    def memory_keys(self) -> set[str]:
        """The keys of the records that are held in host memory or on the device."""
        with self._lock:
            return {*self._host, *self._device}

    def in_use(self) -> int:
        """How many records are pinned."""
        with self._lock:
            return len(self._pin_counts)

    def count_stale(self) -> None:
        """Count a record as stale, which turned out to be of another text."""
        with self._lock:
            self._counts["stale"] += 1

    def metrics(self) -> StoreMetrics:
        """What the tiers hold, and have done so far."""
        with self._lock:
            disk = self.disk.tier()
            return store_metrics(self._counts, self._device, self._host, disk)

    def close(self) -> None:
        """Wait for reads that are under way, then release all memory. May be called again."""
        self._loader.close()
        with self._lock:
            self._forget_memory()

    # For forks.

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self) -> None:
        self._lock.release()

    def in_child(self) -> None:
        """Forget all records: reads that are under way never end in a forked child."""
        self._forget_memory()
        self._unopened.clear()
        self._active.clear()
        self._loader = self._new_loader()

    # For ingest.

    def get(self, key: str) -> KVRecord:
        """A whole record from its file, past all tiers. Raises as `RecordStore.get` does."""
        record = self._store.get(key)
        self.disk.copy(record)
        return record

    def put(self, record: ChunkKV) -> bool:
        """Write a record if there is room on the disk; returns whether it is kept.

        Raises as `RecordStore.put` does.
        """
        return self.disk.put(record)

    def delete(self, key: str) -> None:
        """Delete a record from all tiers; nothing happens where there is none."""
        self.disk.delete(key)

    def keys(self) -> Iterator[str]:
        """The keys of all records on disk, ascending, whichever process wrote them."""
        return self._store.keys()

    def existing(self, keys: Iterable[str]) -> set[str]:
        """Those of these keys that there are records of, on disk or in the shared storage."""
        return self._store.existing(keys)

    # Private.

    def _new_loader(self) -> Loader:
        events = LoaderEvents(self._opened, self._read, self._complete, self._waited, self._failed)
        return Loader(self.path, self._store.files, self._page_locked, self._is_shared, events)

    def _forget_memory(self) -> None:
        for tier in (self._device, self._host):
            for key in tier:
                tier.discard(key)
        self._alive.clear()

    def _forget(self, key: str) -> None:
        """Forget a record in memory, so that later requests read it again."""
        self._device.discard(key)
        self._host.discard(key)
        self._alive.pop(key, None)
        self._unopened.pop(key, None)

    def _in_memory(self, key: str) -> KVRecord | None:
        found = self._host.get(key)
        return self._alive.get(key) if found is None else found

    def _load(self, key: str) -> Load:
        load = self._unopened.get(key)
        if load is None:
            load = Load(key, self.disk.lacks(key))
            self._scores.touch(key)  # without any score it would find no room
            self._loader.start(load)  # its callbacks wait for the lock, and find the load then
            self._unopened[key] = self._active[key] = load
        return load

    def _prefetch(self, key: str) -> None:
        if not self.at_hand([key]):
            self._load(key)

    def _cancel_unused(self, key: str) -> None:
        """Stop reading a record that no request uses any more, unless host memory holds it."""
        load = self._active.get(key)
        if load is not None and key not in self._host and key not in self._unopened:
            load.cancelled = True
            self._alive.pop(key, None)

    def _promote(self, key: str, correction: Correction | None) -> None:
        with self._lock:
            record, resident = self._host.get(key), self._device.get(key)
            if self._device.budget == 0 or record is None:
                return
            if resident is not None and resident.correction is correction:
                return
        if not record.ready(slice(None)):
            return
        started = perf_counter_ns()
        moved = self._to_device(record, correction)
        nbytes = sum(t.numel() * t.element_size() for t in (moved.keys, moved.values))
        with self._lock:
            resident = _Resident(moved, correction)
            if self._host.get(key) is record and self._device.admit(key, resident, nbytes):
                self._counts["device bytes"] += nbytes
                self._counts["device ns"] += perf_counter_ns() - started

    # Callbacks of the loader.

    def _opened(self, load: Load, record: KVRecord) -> None:
        with self._lock:
            if self._unopened.get(load.key) is not load:
                return  # replaced or deleted meanwhile: it serves only the requests that wait
            del self._unopened[load.key]
            if self._host.admit(load.key, record, record.nbytes) or self._pin_counts[load.key]:
                self._alive[load.key] = record
            else:
                load.cancelled = True

    def _read(self, load: Load, nbytes: int, seconds: float) -> None:
        with self._lock:
            self._counts[f"{_source(load)} bytes"] += nbytes
            self._counts[f"{_source(load)} ns"] += int(seconds * 1e9)

    def _complete(self, load: Load, record: KVRecord) -> None:
        if load.from_shared:
            self.disk.copy(record)

    def _waited(self, seconds: float) -> None:
        with self._lock:
            self._counts["waited ns"] += int(seconds * 1e9)

    def _failed(self, load: Load, error: KVRecordError) -> None:
        with self._lock:
            if load.cancelled:
                return
            load.cancelled = True
            if not load.from_shared and isinstance(error, (KVCorruptError, KVForeignError)):
                self.disk.drop_copy(load.key)
            if self._unopened.get(load.key) is load or self._active.get(load.key) is load:
                self._forget(load.key)
            if not self.disk.holds(load.key):
                self._scores.forget(load.key)
            kinds = {KVMissingError: "misses", KVForeignError: "stale"}
            self._counts[kinds.get(type(error), "corrupt")] += 1


def _source(load: Load) -> str:
    return "shared" if load.from_shared else "disk"
