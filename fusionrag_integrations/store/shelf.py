"""The files of a store within budgets: what ingest keeps, and what requests leave there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import RLock

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.inputs import check_fields
from fusionrag_integrations.store.disk import FileKVStore
from fusionrag_integrations.store.heat import Heat
from fusionrag_integrations.store.tier import Tier
from fusionrag_integrations.types import ChunkKV

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes that each tier may hold; None for no bound.

    device: beside the model. captured: of what is on disk, the part of chunks that came with
    requests. Raises `InvalidInputError` for less than 0.
    """

    device: int | None = 0
    host: int | None = 2 * GIB
    disk: int | None = None
    captured: int | None = GIB

    def __post_init__(self) -> None:
        check_fields(self)
        for budget in (self.device, self.host, self.disk, self.captured):
            if budget is not None and budget < 0:
                raise InvalidInputError(f"A budget is {budget} bytes; give 0 or more, or None.")


class Shelf:
    """Counts the bytes of records on disk, as this process knows them. Thread-safe.

    Ingest fills what room there is; a captured chunk takes the place of colder records.
    """

    def __init__(
        self,
        store: FileKVStore,
        budgets: Budgets,
        heat: Heat,
        pinned: Counter[str],
        lock: RLock,
        forget: Callable[[str], None],
    ) -> None:
        """lock: guards heat and pins. forget: called, under it, with keys whose record changes."""
        self._store = store
        self._heat = heat
        self._lock = lock
        self._forget = forget
        self._disk: Tier[None] = Tier(budgets.disk, heat, pinned, self._drop)
        self._captured: Tier[None] = Tier(budgets.captured, heat, pinned, self._drop)
        self._listed = False

    def disk(self) -> Tier[None]:
        """What is on disk."""
        with self._lock:
            self._list()
            return self._disk

    def holds(self, key: str) -> bool:
        """Whether a record is known to be there."""
        with self._lock:
            return key in self._disk

    def put(self, record: ChunkKV) -> bool:
        """Write a record if there is room; returns whether it is kept. Raises as the store does."""
        key, nbytes = record.key, self._store.file_bytes(record)
        with self._lock:
            self._list()
            new = key not in self._disk
            if new and not self._disk.fits(nbytes):
                return False
            self._disk.admit(key, None, nbytes)
        self._write(record, new)
        return True

    def capture(self, record: ChunkKV) -> bool:
        """Like `put`, but colder records give way."""
        key, nbytes = record.key, self._store.file_bytes(record)
        with self._lock:
            self._list()
            self._heat.touch(key)
            new = key not in self._disk
            if new:
                tiers = (self._captured, self._disk)
                if not all(tier.make_room(key, nbytes) for tier in tiers):
                    return False
                for tier in tiers:
                    tier.admit(key, None, nbytes)
        self._write(record, new)
        return True

    def adopt(self, keys: Iterable[str]) -> None:
        """These records, if they are there, were captured."""
        with self._lock:
            self._list()
            for key in keys:
                if key in self._disk:
                    self._captured.admit(key, None, self._disk.nbytes(key))

    def captured(self) -> set[str]:
        """Keys of captured records."""
        with self._lock:
            return set(self._captured)

    def has_room_to_spare(self) -> bool:
        """Whether less than half of what may be captured is there."""
        with self._lock:
            budget = self._captured.budget
            return budget is None or 2 * self._captured.used < budget

    def delete(self, key: str) -> None:
        """Remove a record; nothing happens where there is none."""
        with self._lock:
            self._drop(key)

    def _write(self, record: ChunkKV, new: bool) -> None:
        """Write a record that is counted already; if that fails, a new one counts no more."""
        try:
            self._store.put(record)
        except BaseException:
            with self._lock:
                if new:
                    self._disk.discard(record.key)
                    self._captured.discard(record.key)
            raise
        with self._lock:
            self._forget(record.key)

    def _list(self) -> None:
        """Know what is on disk; those that were written last count as the hottest."""
        if not self._listed:
            self._listed = True
            for key, nbytes in self._store.by_age():
                if key not in self._heat:
                    self._heat.touch(key)
                self._disk.admit(key, None, nbytes)

    def _drop(self, key: str) -> None:
        self._store.delete(key)
        self._forget(key)
        self._disk.discard(key)
        self._captured.discard(key)
        self._heat.forget(key)
