"""Any order of put, capture, get, pin, delete, prefetch and reopen, against a plain dictionary."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from fusionrag_integrations.errors import KVMissingError
from fusionrag_integrations.store.corrections import Correction
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.kv.lease import Lease
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.kv.types import ChunkKV, LayeredKV
from tests.store.made import SIGNATURE, random_kv

CPU = torch.device("cpu")
KEYS = ["aa", "ab", "bb", "cc", "dd", "ee"]
SHAPE = (1, 1, 3, 4)
NBYTES = 4 * 3 + 2 * 4 * 3 * 4
ROOM = {"device": 2, "host": 3, "disk": 5, "captured": 2}

keys, seeds = st.sampled_from(KEYS), st.integers(0, 3)


def made(key: str, seed: int) -> ChunkKV:
    return random_kv(key, shape=SHAPE, seed=seed)


def resident(kv: LayeredKV, correction: Correction | None) -> ChunkKV:
    keys, values = kv.tensors(slice(None), CPU)
    return ChunkKV(kv.key, kv.kind, kv.token_ids, keys, values, rotated=True)


class Tiers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._directory = TemporaryDirectory()
        self.store = RecordStore(LocalKVFiles(Path(self._directory.name)), SIGNATURE, "float32")
        self.file_bytes = self.store.file_bytes(made("aa", 0))
        self.stored: dict[str, int] = {}
        self.captured: set[str] = set()
        self.leases: list[tuple[Lease, dict[str, tuple[LayeredKV, int]]]] = []
        self.open()

    def open(self) -> None:
        budgets = Budgets(
            device=ROOM["device"] * NBYTES,
            host=ROOM["host"] * NBYTES,
            disk=ROOM["disk"] * self.file_bytes,
            captured=ROOM["captured"] * self.file_bytes,
        )
        self.kv = TieredKV(Path(self._directory.name).parent, self.store, budgets, CPU, resident)
        self.kv.disk.mark_adhoc(self.captured)

    @rule(key=keys, seed=seeds)
    def put(self, key: str, seed: int) -> None:
        room = key in self.stored or len(self.stored) < ROOM["disk"]
        assert self.kv.put(made(key, seed)) == room
        if room:
            self.stored[key] = seed

    @rule(key=keys, seed=seeds)
    def capture(self, key: str, seed: int) -> None:
        new = key not in self.stored
        if self.kv.disk.put_adhoc(made(key, seed)):
            self.stored[key] = seed
            if new:
                self.captured.add(key)
        else:
            assert new
        there = set(self.kv.keys())
        gone = self.stored.keys() - there
        assert not gone & self.pinned, "what is in use was evicted"
        for key in gone:
            del self.stored[key]
        self.captured &= there

    @rule(key=keys)
    def get(self, key: str) -> None:
        with self.kv.lease() as lease:
            self.take(lease, key)

    @rule(wanted=st.lists(keys, min_size=1, max_size=3, unique=True))
    def pin(self, wanted: list[str]) -> None:
        lease = self.kv.lease()
        lease.prefetch(wanted)
        held = {key: self.take(lease, key) for key in wanted}
        self.leases.append((lease, {key: kv for key, kv in held.items() if kv is not None}))

    @rule()
    def unpin(self) -> None:
        if self.leases:
            lease, _ = self.leases.pop(0)
            lease.__exit__(None, None, None)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self.kv.delete(key)
        self.stored.pop(key, None)
        self.captured.discard(key)

    @rule(wanted=st.lists(keys, max_size=4))
    def prefetch(self, wanted: list[str]) -> None:
        self.kv.prefetch(wanted)

    @rule()
    def reopen(self) -> None:
        while self.leases:
            self.unpin()
        self.kv.close()
        self.open()

    @property
    def pinned(self) -> set[str]:
        return {key for _, held in self.leases for key in held}

    def take(self, lease: Lease, key: str) -> tuple[LayeredKV, int] | None:
        try:
            found = lease.get(key, complete=True)
        except KVMissingError:
            assert key not in self.stored
            return None
        assert key in self.stored
        self.check(found, self.stored[key])
        return found, self.stored[key]

    def check(self, kv: LayeredKV, seed: int) -> None:
        wanted = made(kv.key, seed)
        for got, true in zip(
            kv.tensors(slice(None), CPU), (wanted.keys, wanted.values), strict=True
        ):
            assert torch.equal(got, true)

    @invariant()
    def what_is_held_is_as_it_was_taken(self) -> None:
        for _, held in self.leases:
            for kv, seed in held.values():
                self.check(kv, seed)

    @invariant()
    def budgets_hold_to_the_byte(self) -> None:
        facts = self.kv.metrics()
        for name, tier in (("device", facts.device), ("host", facts.host)):
            assert tier.records <= ROOM[name]
        assert facts.host.bytes == facts.host.records * NBYTES
        assert facts.device.bytes == facts.device.records * (NBYTES - 4 * 3)
        assert facts.disk.bytes == self.store.size_bytes() == len(self.stored) * self.file_bytes
        assert set(self.kv.keys()) == self.stored.keys()
        assert self.kv.disk.adhoc_keys() == self.captured
        assert len(self.captured) <= ROOM["captured"]
        assert facts.corrupt == facts.stale == 0

    def teardown(self) -> None:
        while self.leases:
            self.unpin()
        assert self.kv.in_use() == 0
        self.kv.close()
        self._directory.cleanup()


def test_three_tiers_are_as_a_dictionary() -> None:
    run_state_machine_as_test(
        Tiers,
        settings=settings(max_examples=60, stateful_step_count=25, deadline=None),
    )
