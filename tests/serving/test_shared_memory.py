"""Requests over the same chunks hold one copy of them, and what is their own."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from weakref import ref

import pytest

from benchmarks.memory import tensor_bytes_since, tensor_storages
from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.serving.alone import AtOnce
from fusionrag_integrations.serving.passes import Limits
from fusionrag_integrations.serving.request import Request, Stage
from fusionrag_integrations.serving.scheduler import Scheduler
from fusionrag_integrations.store.kv.disk_budget import Budgets
from tests.conftest import town

TABLES = (
    40_000  # bytes of token ids and tables: much beside this model's KV, little beside a real one's
)
MANY = Limits(cost=512, cost_alone=512, requests=64)
WAYS = {
    "corrected, nothing recomputed": {"ratio": 0.0},
    "as it is stored, some recomputed": {"ratio": 0.15, "corrected": False},
}


@pytest.fixture(scope="module")
def engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FusionEngine]:
    store = tmp_path_factory.mktemp("shared") / "store"
    budgets = Budgets(device=1 << 28, starts=0)
    with FusionEngine.from_pretrained(
        model_dir, store=store, chunk_tokens=48, budgets=budgets
    ) as engine:
        engine.ingest([town(number) for number in range(6)])
        yield engine


PROMPT = "\n\n".join(town(number).text for number in (3, 1, 4))


def decoding(engine: FusionEngine, count: int, settings: AnswerSettings) -> list[Request]:
    """So many requests over the same chunks, each with a question of its own, while they decode."""
    scheduler = Scheduler(engine.pipeline, MANY, AtOnce())
    requests = [
        engine.pipeline.request(f"{PROMPT}\n\nWhere is house {number}?", settings)
        for number in range(count)
    ]
    for request in requests:
        scheduler.add(request)
    while any(request.stage is not Stage.DECODE for request in requests):
        scheduler.step()
    return requests


@pytest.mark.parametrize("way", WAYS)
def test_a_further_request_takes_its_own_tokens(engine: FusionEngine, way: str) -> None:
    settings = AnswerSettings(max_tokens=40).changed(WAYS[way])
    for _ in range(3):  # chunks move up to the device with use
        engine.answer(f"{PROMPT}\n\nWhere is it?", settings)
    before = tensor_storages(engine.model.device)
    for count in (1, 8, 32):
        requests = decoding(engine, count, settings)
        taken = tensor_bytes_since(before, engine.model.device)
        own = sum(
            request.usage.fresh_tokens + request.usage.recomputed_tokens + settings.max_tokens
            for request in requests
        )
        whole = sum(request.capacity for request in requests)
        assert own < whole / 2
        assert taken <= 1.05 * own * engine.model.kv_bytes + count * TABLES
        for request in requests:
            request.close()
        del requests, request


@pytest.mark.parametrize("selector", ["fusionrag", "cacheblend"])
@pytest.mark.parametrize("way", ["closed at work", "read to its end"])
def test_no_kv_waits_for_the_garbage_collector(
    engine: FusionEngine, selector: str, way: str
) -> None:
    scheduler = Scheduler(engine.pipeline, Limits(cost=1, cost_alone=1, requests=1), AtOnce())
    asked = AnswerSettings(max_tokens=3, selector=selector)
    request = engine.pipeline.request(f"{PROMPT}\n\nWhere is it?", asked)
    gc.disable()
    try:
        scheduler.add(request)
        while not hasattr(request, "placed"):
            scheduler.step()
        placed = ref(request.placed)
        if way == "closed at work":
            assert request.work
            request.close()
        while not scheduler.idle:
            scheduler.step()
        assert placed() is None
    finally:
        gc.enable()
