"""Stores opened, used and closed, over and over: what is left in the process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations import langchain as lc
from fusionrag_integrations import llama_index as li
from fusionrag_integrations.execution.hf.model import CausalModel
from tests.conftest import town
from tests.processes import Held, quick_collection

TIMES = 100
GROWTH = 32  # MB that the system's allocator may keep


def test_openings_leave_nothing(
    model_dir: Path, tmp_path: Path, report: Callable[[str, str, object, object], None]
) -> None:
    model, store = CausalModel.load(model_dir), tmp_path / "store"

    def once() -> None:
        with FusionEngine.open(model, store, chunk_tokens=48) as engine:
            engine.ingest([town(0)])
            engine.answer(town(0).text, AnswerSettings(max_tokens=2))
        with lc.FusionKVRetriever.from_store(store) as documents:
            assert documents.invoke("river")
        with li.FusionKVRetriever.from_store(store) as nodes:
            assert nodes.retrieve("river")

    for _ in range(10):  # pools and caches that every process has once
        once()
    with quick_collection():
        before = Held.now()
        for _ in range(TIMES):
            once()
        after = Held.now()
    lost = (
        f"{after.descriptors - before.descriptors} descriptors, "
        f"{after.threads - before.threads} threads, "
        f"{after.directories - before.directories} directories, "
        f"{after.memory - before.memory} MB"
    )
    report("Leaks", "an engine and two retrievers opened, used and closed", TIMES, lost)
    assert after.descriptors <= before.descriptors
    assert after.threads <= before.threads + 1
    assert after.directories <= before.directories
    assert after.memory <= before.memory + GROWTH
