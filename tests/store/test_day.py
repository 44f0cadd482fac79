"""A day's requests in fast motion: the hit rate holds, budgets hold, nothing leaks.

1,500 requests in the tests; FUSIONRAG_REQUESTS=100000 for the whole day.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from fusionrag_integrations.store.corrections import Correction
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.kv.kv_record import KVRecord
from fusionrag_integrations.store.kv.loader import Load
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.lrfu import LRFUScores
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.kv.tier import Tier
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.kv.types import ChunkKV, LayeredKV
from tests.store.made import SIGNATURE, random_kv

REQUESTS = int(os.environ.get("FUSIONRAG_REQUESTS", "1500"))
RECORDS, CHUNKS = 600, 4  # in the store; of a request
POPULARITY = 0.9  # the exponent of Zipf's law
DRIFT = 25  # requests after which a popular record changes places with an unpopular one
CPU = torch.device("cpu")


def key_of(number: int) -> str:
    return f"{number:08x}"


def tiny(number: int) -> ChunkKV:
    return random_kv(key_of(number), shape=(1, 1, 4, 4), seed=number)


def requests(count: int) -> Iterator[list[int]]:
    rng = np.random.default_rng(11)
    weights = np.arange(1, RECORDS + 1) ** -POPULARITY
    records = rng.permutation(RECORDS)
    for number in range(count):
        if number % DRIFT == DRIFT - 1:
            hot, cold = rng.integers(0, RECORDS // 10), rng.integers(RECORDS // 10, RECORDS)
            records[[hot, cold]] = records[[cold, hot]]
        chosen = rng.choice(RECORDS, CHUNKS, replace=False, p=weights / weights.sum())
        yield records[chosen].tolist()


T = TypeVar("T")


def resident(kv: LayeredKV, correction: Correction | None) -> ChunkKV:
    keys, values = kv.tensors(slice(None), CPU)
    return ChunkKV(kv.key, kv.kind, kv.token_ids, keys, values, rotated=True)


def living(kind: type[T], besides: set[int]) -> list[T]:
    """Objects of a type that are alive. besides: ids of those of other tests."""
    gc.collect()
    return [o for o in gc.get_objects() if isinstance(o, kind) and id(o) not in besides]


def test_a_day(tmp_path: Path) -> None:
    kept = [living(kind, set()) for kind in (LRFUScores, Tier, Load, KVRecord)]
    others = {id(o) for found in kept for o in found}  # `kept` holds them, so no id is used again
    store = RecordStore(LocalKVFiles(tmp_path), SIGNATURE, "float32")
    expected = {}
    for number in range(RECORDS):
        store.put(tiny(number))
        expected[number] = tiny(number).keys
    nbytes = store.get(key_of(0)).nbytes
    budgets = Budgets(device=20 * nbytes, host=60 * nbytes + 5)
    kv = TieredKV(tmp_path.parent, store, budgets, CPU, resident)
    gc.collect()  # what other tests have left open isn't closed on the way
    files = len(list(Path("/proc/self/fd").iterdir()))
    rates = []
    before = kv.metrics()
    for number, wanted in enumerate(requests(REQUESTS), start=1):
        if number % 3 == 0:
            kv.prefetch(map(key_of, wanted))
        with kv.lease() as lease:
            for record in wanted:
                found = lease.get(key_of(record), complete=True)
                assert found.token_ids == (100, 101, 102, 103)
                assert torch.equal(found.tensors(slice(None), CPU)[0], expected[record])
        held = kv.metrics()
        assert held.device.bytes <= budgets.device  # type: ignore[operator]
        assert held.host.bytes <= budgets.host  # type: ignore[operator]
        if number % (REQUESTS // 10) == 0:
            now = kv.metrics()
            hits = now.device.hits + now.host.hits - before.device.hits - before.host.hits
            rates.append(hits / (CHUNKS * REQUESTS // 10))
            before = now
    assert min(rates[1:]) >= 0.9 * max(rates[1:3])
    # The most popular records that host memory holds make up this share of all uses.
    weights = np.arange(1, RECORDS + 1) ** -POPULARITY
    assert np.mean(rates[1:]) >= 0.8 * weights[:60].sum() / weights.sum()
    (scores,) = living(LRFUScores, others)
    assert len(scores) == RECORDS
    assert all(tier.queued <= 2 * len(tier) + 64 for tier in living(Tier, others))
    assert held.host.bytes == nbytes * held.host.records
    kv.close()
    assert kv.in_use() == 0
    assert living(Load, others) == []
    assert kv.metrics().host.records == 0
    del found
    assert living(KVRecord, others) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    facts = kv.metrics()
    assert facts.corrupt == facts.stale == facts.misses == 0
    assert facts.disk.bytes == store.size_bytes()
