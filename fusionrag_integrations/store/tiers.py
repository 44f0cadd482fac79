"""Three tiers of KV records: files, host memory, and the model's device.

A request holds a `Lease`. What it asks for comes from the hottest tier that has it, and moves up
with use: from files to host memory when it is read, and to the device once it was used before.

disk --loader--> host, as the file has it --resident--> device, rotated, shared by requests
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import RLock
from time import perf_counter_ns
from types import TracebackType
from weakref import WeakValueDictionary

import torch

from fusionrag_integrations.errors import (
    KVForeignError,
    KVMissingError,
    KVRecordError,
)
from fusionrag_integrations.forks import Forkable
from fusionrag_integrations.records.layout import is_key
from fusionrag_integrations.store.disk import FileKVStore
from fusionrag_integrations.store.heat import Heat
from fusionrag_integrations.store.loader import Load, Loader, LoaderEvents
from fusionrag_integrations.store.metrics import StoreMetrics, TierMetrics
from fusionrag_integrations.store.shelf import Budgets, Shelf
from fusionrag_integrations.store.stored import StoredKV
from fusionrag_integrations.store.tier import Tier
from fusionrag_integrations.threads import Closable
from fusionrag_integrations.types import ChunkKV, LayeredKV

# Uses of any record after which a use counts half. Under Zipf's law with 3,000 records, room for
# 300 and drift, 1,024 to 65,536 find within 4 points as much; least recently used, 3 to 9 less.
HALF_LIFE = 4096

MoveToDevice = Callable[[LayeredKV], ChunkKV]


class TieredKV(Forkable, Closable):
    """KV records of one store, shared by requests in several threads.

    Reading and writing raise `StoreClosedError` once it is closed.
    """

    def __init__(
        self,
        store: FileKVStore,
        budgets: Budgets,
        device: torch.device,
        to_device: MoveToDevice,
    ) -> None:
        """to_device: gives a record's form on `device` that requests attend to where it lies."""
        self._store = store
        self._pinned_memory = device.type == "cuda"
        self._to_device = to_device
        self._lock = RLock()
        self._heat = Heat(HALF_LIFE)
        self._pinned: Counter[str] = Counter()
        self._device: Tier[ChunkKV] = Tier(budgets.device, self._heat, self._pinned)
        self._host: Tier[StoredKV] = Tier(budgets.host, self._heat, self._pinned)
        self._shelf = Shelf(store, budgets, self._heat, self._pinned, self._lock, self._forget)
        self._loads: dict[str, Load] = {}  # whose headers aren't read yet
        self._reading: WeakValueDictionary[str, Load] = WeakValueDictionary()
        self._held: WeakValueDictionary[str, StoredKV] = WeakValueDictionary()
        self._counts: Counter[str] = Counter()
        self._loader = self._new_loader()
        super().__init__()

    # What requests use.

    def prefetch(self, keys: Iterable[str]) -> None:
        """Begin to read these records into host memory, if they are in none; returns at once.

        What is missing or damaged shows when a request asks for it; what is no key is passed over.
        """
        with self._lock:
            for key in filter(is_key, keys):
                if key not in self._device and self._in_memory(key) is None:
                    self._load(key)

    def lease(self) -> Lease:
        """What a request holds while it uses records."""
        return Lease(self)

    def begin(self, key: str) -> None:
        """Begin to read a record, if it is in no memory; it stays until `give_back`."""
        with self._lock:
            self._pinned[key] += 1
            if key not in self._device and self._in_memory(key) is None:
                self._load(key)

    def take(self, key: str, stored: bool = False) -> LayeredKV:
        """A record, which stays in its tier until `give_back`, even if this raises.

        stored: not in the device's form.
        Its layers may still be on their way. Raises as `FileKVStore.get` does.
        """
        with self._lock:
            self._pinned[key] += 1
            self._heat.touch(key)
            resident = None if stored else self._device.get(key)
            if resident is not None:
                self._counts["device hits"] += 1
                return resident
            if (record := self._in_memory(key)) is not None:
                self._counts["host hits"] += 1
                return record
            load = self._load(key)
        record = load.record()
        with self._lock:
            self._counts["disk hits"] += 1
        return record

    def give_back(self, keys: Iterable[str]) -> None:
        """End the use of records, each taken once. They may move up to the device now."""
        taken = list(keys)
        with self._lock:
            for key in taken:
                self._pinned[key] -= 1
                if not self._pinned[key]:
                    del self._pinned[key]
                    self._let_go(key)
        for key in dict.fromkeys(taken):
            self._promote(key)

    def foreign(self, key: str) -> None:
        """Count a record that turned out to be of another text."""
        with self._lock:
            self._counts["stale"] += 1

    @property
    def path(self) -> Path:
        """The directory of the store whose records these are."""
        return self._store.files.directory.parent

    def metrics(self) -> StoreMetrics:
        """What the tiers hold now, and what they did so far."""
        with self._lock:
            counts = self._counts
            tiers = {
                name: TierMetrics(
                    budget=tier.budget,
                    records=len(tier),
                    bytes=tier.used,
                    hits=counts[f"{name} hits"],
                    evictions=tier.evictions,
                    moved_bytes=counts[f"{name} bytes"],
                    moved_ms=counts[f"{name} ns"] / 1e6,
                )
                for name, tier in (
                    ("device", self._device),
                    ("host", self._host),
                    ("disk", self._shelf.disk()),
                )
            }
            return StoreMetrics(
                **tiers,
                misses=counts["misses"],
                corrupt=counts["corrupt"],
                stale=counts["stale"],
                waited_ms=counts["waited ns"] / 1e6,
            )

    def close(self) -> None:
        """Let reads that are under way end, and let go of all memory. May be called again."""
        self._loader.close()
        with self._lock:
            self._forget_memory()

    # Over a fork.

    def hold(self) -> None:
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Reads that were under way never end in a forked child: it reads all records anew."""
        self._forget_memory()
        self._loads.clear()
        self._reading.clear()
        self._loader = self._new_loader()

    # What ingest uses.

    def get(self, key: str) -> StoredKV:
        """A whole record from its file; no tier takes notice. Raises as `FileKVStore.get` does."""
        return self._store.get(key)

    def put(self, record: ChunkKV) -> bool:
        """Write a record if there is room on the disk; returns whether it is kept.

        Raises as `FileKVStore.put` does.
        """
        return self._shelf.put(record)

    def delete(self, key: str) -> None:
        """Remove a record from all tiers; nothing happens where there is none."""
        self._shelf.delete(key)

    def keys(self) -> Iterator[str]:
        """The keys of all records on disk, ascending, whichever process wrote them."""
        return self._store.keys()

    # What captures use.

    def capture(self, record: ChunkKV) -> bool:
        """Like `put`, for a chunk that came with a request: colder records give way."""
        return self._shelf.capture(record)

    def adopt(self, keys: Iterable[str]) -> None:
        """These records, if they are there, came with requests of an earlier engine."""
        self._shelf.adopt(keys)

    def captured(self) -> set[str]:
        """Keys of the records that came with requests."""
        return self._shelf.captured()

    def has_room_to_spare(self) -> bool:
        """Whether less than half of what may be captured is there."""
        return self._shelf.has_room_to_spare()

    # The rest is called with the lock held, or takes it.

    def _new_loader(self) -> Loader:
        events = LoaderEvents(self._opened, self._read, self._waited, self._failed)
        return Loader(self._store.files, self._pinned_memory, events)

    def _forget_memory(self) -> None:
        for tier in (self._device, self._host):
            for key in tier:
                tier.discard(key)
        self._held.clear()

    def _forget(self, key: str) -> None:
        """Let requests to come read the record anew."""
        self._device.discard(key)
        self._host.discard(key)
        self._held.pop(key, None)
        self._loads.pop(key, None)

    def _in_memory(self, key: str) -> StoredKV | None:
        found = self._host.get(key)
        return self._held.get(key) if found is None else found

    def _load(self, key: str) -> Load:
        load = self._loads.get(key)
        if load is None:
            load = Load(key)
            self._heat.touch(key)  # what was never used would find no room
            self._loader.start(load)  # which waits for the lock before it looks for the load
            self._loads[key] = self._reading[key] = load
        return load

    def _let_go(self, key: str) -> None:
        """Nobody uses the record now: stop reading it, unless it is kept."""
        load = self._reading.get(key)
        if load is not None and key not in self._host and key not in self._loads:
            load.cancelled = True
            self._held.pop(key, None)

    def _promote(self, key: str) -> None:
        with self._lock:
            record = self._host.get(key)
            if self._device.budget == 0 or record is None or key in self._device:
                return
        if not record.ready(slice(None)):
            return
        started = perf_counter_ns()
        resident = self._to_device(record)
        nbytes = sum(t.numel() * t.element_size() for t in (resident.keys, resident.values))
        with self._lock:
            if self._host.get(key) is record and self._device.admit(key, resident, nbytes):
                self._counts["device bytes"] += nbytes
                self._counts["device ns"] += perf_counter_ns() - started

    # What the loader tells.

    def _opened(self, load: Load, record: StoredKV) -> None:
        with self._lock:
            if self._loads.get(load.key) is not load:
                return  # replaced or deleted meanwhile: only those who wait get it
            del self._loads[load.key]
            if self._host.admit(load.key, record, record.nbytes) or self._pinned[load.key]:
                self._held[load.key] = record
            else:
                load.cancelled = True

    def _read(self, nbytes: int, seconds: float) -> None:
        with self._lock:
            self._counts["disk bytes"] += nbytes
            self._counts["disk ns"] += int(seconds * 1e9)

    def _waited(self, seconds: float) -> None:
        with self._lock:
            self._counts["waited ns"] += int(seconds * 1e9)

    def _failed(self, load: Load, error: KVRecordError) -> None:
        with self._lock:
            if load.cancelled:
                return
            load.cancelled = True
            if self._loads.get(load.key) is load or self._reading.get(load.key) is load:
                self._forget(load.key)
            if not self._shelf.holds(load.key):
                self._heat.forget(load.key)
            kinds = {KVMissingError: "misses", KVForeignError: "stale"}
            self._counts[kinds.get(type(error), "corrupt")] += 1


class Lease:
    """The records that one request uses: none of them leaves its tier until the end."""

    def __init__(self, tiers: TieredKV) -> None:
        self._tiers = tiers
        self._taken: list[str] = []

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        taken, self._taken = self._taken, []
        self._tiers.give_back(taken)

    def begin(self, keys: Iterable[str]) -> None:
        """Begin to read what is in no memory yet, so that `get` waits for all of it together."""
        for key in keys:
            self._taken.append(key)
            self._tiers.begin(key)

    def get(self, key: str, complete: bool = False, stored: bool = False) -> LayeredKV:
        """A record; its layers may be on their way, unless it is to be complete.

        stored: in its file's form, with keys in the canonical frame, though the device may have it.
        Raises as `FileKVStore.get` does; without `complete`, damage may show only in a layer.
        """
        self._taken.append(key)
        record = self._tiers.take(key, stored)
        if complete:
            record.wait()
        return record
