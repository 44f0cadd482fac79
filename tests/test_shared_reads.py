"""Reads that requests share: once at a time, never kept, errors each their own."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fusionrag_integrations.errors import KVMissingError
from fusionrag_integrations.store import SharedReads
from fusionrag_integrations.types import ChunkKV


class Slow:
    """A store whose reads wait until they are let go, or until `together` of them wait."""

    def __init__(self, together: int = 1) -> None:
        self.reads: list[str] = []
        self.barrier = threading.Barrier(together)
        self.missing: set[str] = set()

    def get(self, key: str) -> ChunkKV:
        self.reads.append(key)
        self.barrier.wait(timeout=10)
        if key in self.missing:
            raise KVMissingError(key)
        zeros = torch.zeros(1, 1, 2, 4)
        return ChunkKV(key, "isolated", (1, 2), zeros, zeros)


def test_requests_at_the_same_time_get_one_object() -> None:
    store = Slow(together=2)  # the read waits for the test, so that the others queue up
    shared = SharedReads(store)  # type: ignore[arg-type]
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(shared.get, "ab") for _ in range(8)]
        store.barrier.wait(timeout=10)
        records = [future.result() for future in waiting]
    assert store.reads == ["ab"]
    assert len({id(record) for record in records}) == 1


def test_different_keys_are_read_side_by_side() -> None:
    store = Slow(together=2)  # neither read returns before the other has begun
    shared = SharedReads(store)  # type: ignore[arg-type]
    with ThreadPoolExecutor(2) as threads:
        assert [r.key for r in threads.map(shared.get, ["ab", "cd"])] == ["ab", "cd"]


def test_what_nobody_holds_is_read_anew() -> None:
    store = Slow()
    shared = SharedReads(store)  # type: ignore[arg-type]
    held = shared.get("ab")
    assert shared.get("ab") is held
    del held
    gc.collect()
    shared.get("ab")
    assert store.reads == ["ab", "ab"]


def test_an_error_is_not_remembered() -> None:
    store = Slow()
    store.missing = {"ab"}
    shared = SharedReads(store)  # type: ignore[arg-type]
    with pytest.raises(KVMissingError):
        shared.get("ab")
    store.missing = set()
    assert shared.get("ab").key == "ab"
