"""Engines, corpora and streams in a child that was forked while they were open."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fusionrag_integrations import AnswerSettings, FusionEngine, Store
from fusionrag_integrations.langchain import FusionKVRetriever
from tests.conftest import town
from tests.processes import in_child
from tests.steps import PATIENCE, Steps

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")

SHORT = AnswerSettings(max_tokens=3)
REFUSED = "StoreError: Chroma can't be used in this process: it was forked from one "

# A server that opens its engine, then forks its workers, which end as gunicorn's do.
PRELOADED = """
import os, sys
import torch
from fusionrag_integrations import AnswerSettings, Document, FusionEngine
from fusionrag_integrations.langchain import FusionKVRetriever

torch.set_num_threads(1)
model, store, text = sys.argv[1:]
engine = FusionEngine.from_pretrained(model, store=store)
retriever = FusionKVRetriever.from_store(store)
engine.answer(text, AnswerSettings(kv="none", max_tokens=2))
torch.set_num_threads(2)  # PyTorch keeps threads, too, from the first use of several on
torch.ones(1000, 1000).exp().sum()

def work():
    (found,) = retriever.invoke("Where is the river?", k=1)
    assert engine.store.search("bridge", 1)
    answer = engine.answer(found.page_content + text, AnswerSettings(max_tokens=2))
    assert answer.usage.reused_tokens, answer
    with FusionEngine.open(engine.model, f"{store}-{os.getpid()}") as own:
        own.ingest([Document(id="own", text=text)])
        assert own.store.search("bridge", 1)
    engine.ingest([Document(id=str(os.getpid()), text=text)])
    torch.ones(1000, 1000).exp().sum()

for _ in range(2):
    child = os.fork()
    if not child:
        work()
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert retriever.invoke("Where is the river?")
print(len(engine.store.catalog.documents.all()))
"""


# A server that loads its model, and opens engines in its workers.
LOADED = """
import os, sys
import torch
from fusionrag_integrations import AnswerSettings, Document, FusionEngine
from fusionrag_integrations.execution.hf.model import CausalModel

torch.set_num_threads(2)
torch.ones(1000, 1000).exp().sum()
model, store, text = sys.argv[1:]
model = CausalModel.load(model)
child = os.fork()
if not child:
    with FusionEngine.open(model, store) as engine:
        engine.ingest([Document(id="own", text=text)])
        print(engine.answer(text, AnswerSettings(max_tokens=2)).usage.completion_tokens)
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


@pytest.fixture(scope="module")
def engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    store = tmp_path_factory.mktemp("forking") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48)
    engine.ingest([town(0)])
    assert engine.answer(town(0).text, SHORT).usage.reused_tokens
    return engine


def test_a_child_reads_kv_and_answers(engine: FusionEngine) -> None:
    expected = engine.answer(town(0).text, SHORT)

    def ask() -> str:
        before = engine.metrics().disk.moved_bytes
        answer = engine.answer(town(0).text, SHORT)
        return f"{answer.text} {answer.usage} {engine.metrics().disk.moved_bytes > before}"

    assert in_child(ask) == f"{expected.text} {expected.usage} True"
    assert engine.answer(town(0).text, SHORT).text == expected.text


def test_a_child_begins_to_read_what_it_will_need(engine: FusionEngine) -> None:
    chunk_ids = engine.store.catalog.chunks.ids()
    handles = [record.handle for record in engine.store.catalog.chunks.records(chunk_ids).values()]

    def read() -> int:
        engine.prefetch(handles)
        return engine.answer(town(0).text, SHORT).missed_chunks

    assert in_child(read) == "0"


def test_after_its_parent_a_child_searches_and_is_refused_at_once_what_needs_chroma(
    engine: FusionEngine, tmp_path: Path
) -> None:
    retriever = FusionKVRetriever(engine=engine, k=1)
    (found,) = retriever.invoke("river")
    assert in_child(lambda: retriever.invoke("river")[0].id) == found.id
    calls = (
        lambda: engine.store.search("river", 1, where={"page": 1}),
        lambda: Store.open(engine.store.path),
        lambda: FusionEngine.open(engine.model, tmp_path / "new"),
        lambda: engine.ingest([town(1)]),
    )
    for call in calls:
        assert in_child(call).startswith(REFUSED)
    assert engine.store.search("river", 1)
    assert retriever.invoke("river")


def test_what_other_threads_are_at_is_no_matter(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    steps.hold_at(1)
    stream = engine.stream(town(0).text, SHORT)
    reader = threading.Thread(target=stream.read)
    reader.start()
    assert steps.is_held.wait(PATIENCE)
    steps.hold_at(-1)
    try:
        assert in_child(stream.read).startswith("StoreError: This answer was begun before")
        assert in_child(stream.close) == "None"
        assert (
            in_child(lambda: engine.answer(town(0).text, SHORT).usage.reused_tokens > 0) == "True"
        )
    finally:
        steps.go_on()
        reader.join(PATIENCE)
    assert stream.answer.usage.completion_tokens == 3


@pytest.mark.asyncio
async def test_a_child_has_threads_of_its_own(engine: FusionEngine) -> None:
    import asyncio

    await engine.stream(town(0).text, SHORT).aread()

    def ask() -> str:
        return (
            asyncio.new_event_loop()
            .run_until_complete(engine.stream(town(0).text, SHORT).aread())
            .text
        )

    said = await asyncio.to_thread(in_child, ask)
    assert said == engine.answer(town(0).text, SHORT).text


def test_a_closed_engine_is_closed_in_a_child(model_dir: Path, tmp_path: Path) -> None:
    engine = FusionEngine.from_pretrained(model_dir, store=tmp_path / "store")
    engine.close()
    assert in_child(lambda: engine.answer("a", SHORT)).startswith("StoreClosedError")
    assert in_child(lambda: engine.store.search("a")).startswith("StoreClosedError")
    assert in_child(engine.close) == "None"


def test_workers_of_a_server_that_has_only_opened_its_engine_do_everything(
    engine: FusionEngine, model_dir: Path, tmp_path: Path
) -> None:
    with FusionEngine.open(engine.model, tmp_path / "store", chunk_tokens=48) as made:
        made.ingest([town(0), town(1)])
    arguments = [sys.executable, "-c", PRELOADED, model_dir, tmp_path / "store", town(2).text]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=180, check=False)
    assert (done.stdout.split(), done.returncode) == (["4"], 0), done.stderr


def test_workers_of_a_server_that_has_only_loaded_its_model_open_engines(
    model_dir: Path, tmp_path: Path
) -> None:
    arguments = [sys.executable, "-c", LOADED, model_dir, tmp_path / "store", town(0).text]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(), done.returncode) == (["2"], 0), done.stderr
