"""Closing engines, corpora and retrievers: nothing is left, and nothing hangs."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations import AnswerSettings, FusionEngine, Store
from fusionrag_integrations import langchain as lc
from fusionrag_integrations import llama_index as li
from fusionrag_integrations.documents.embedding import LexicalEmbedder
from fusionrag_integrations.errors import StoreClosedError, StoreMismatchError
from fusionrag_integrations.execution.hf.model import CausalModel
from tests.conftest import town
from tests.processes import Held, quick_collection
from tests.steps import PATIENCE, Steps

SHORT = AnswerSettings(max_tokens=3)
LONG = AnswerSettings(max_tokens=40)
UPLOAD = "The ferry at Wellbury sails at noon, and comes back in the evening of the same day."
Open = Callable[[Path], Any]


class OtherEmbedding(LexicalEmbedder):
    """Under the built-in one's name, another."""

    def embed_query(self, text: str) -> list[float]:
        return super().embed_query(text[::-1])


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place for temporary directories where no other process makes any."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(scope="module")
def model(model_dir: Path) -> CausalModel:
    return CausalModel.load(model_dir)


@pytest.fixture(scope="module")
def store(model: CausalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("closing") / "store"
    with FusionEngine.open(model, path, chunk_tokens=48) as engine:
        engine.ingest([town(0)])
    return path


@pytest.fixture
def engine(model: CausalModel, tmp_path: Path) -> FusionEngine:
    engine = FusionEngine.open(model, tmp_path / "store", chunk_tokens=48)
    engine.ingest([town(0)])
    return engine


def use(opened: Any) -> None:
    """What leaves something behind if anything does."""
    if isinstance(opened, FusionEngine):
        assert opened.answer(town(0).text, SHORT).usage.reused_tokens
        opened = opened.store
    if isinstance(opened, Store):
        assert opened.search("river", 1)
    if isinstance(opened, lc.FusionKVRetriever):
        assert opened.invoke("river")
        assert asyncio.run(opened.ainvoke("river"))
    if isinstance(opened, li.FusionKVRetriever):
        assert opened.retrieve("river")
        assert asyncio.run(opened.aretrieve("river"))


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("engine", "closed"),
        ("engine", "dropped"),
        ("calibrated", "dropped"),
        ("store", "dropped"),
        ("langchain", "closed"),
        ("llama_index", "closed"),
        ("refused", "closed"),
    ],
)
def test_nothing_is_left_of_ten(model: CausalModel, store: Path, kind: str, end: str) -> None:
    def refused(path: Path) -> Any:
        with pytest.raises(StoreMismatchError):
            FusionEngine.open(model, path, salt="another")
        with pytest.raises(StoreMismatchError):
            Store.open(path, OtherEmbedding())

    ways: dict[str, Open] = {
        "engine": lambda path: FusionEngine.open(model, path),
        "calibrated": lambda path: FusionEngine.open(model, path).calibrated(None),
        "store": Store.open,
        "langchain": lc.FusionKVRetriever.from_store,
        "llama_index": li.FusionKVRetriever.from_store,
        "refused": refused,
    }

    def once() -> None:
        opened = ways[kind](store)
        if opened is None:
            return
        use(opened)
        if end == "closed":
            opened.close()
        del opened
        gc.collect()

    once()
    with quick_collection():
        before = Held.now()
        for _ in range(10):
            once()
        after = Held.now()
    assert after.descriptors <= before.descriptors
    assert after.threads <= before.threads + 1
    assert after.directories <= before.directories


def test_closed_it_refuses_by_name_and_may_be_closed_again(
    engine: FusionEngine, tmp_path: Path
) -> None:
    handles = [hit.handle for hit in engine.store.search("river", 1)]
    calibrated = engine.calibrated(None)
    models: list[Any] = [lc.FusionRAGLLM(engine=engine), lc.ChatFusionRAG(engine=engine)]
    retriever = lc.FusionKVRetriever(engine=engine)
    nodes = li.FusionKVRetriever(engine=engine)
    engine.close()
    engine.close()
    engine.store.close()
    calibrated.close()
    calls: list[Callable[[], object]] = [
        lambda: engine.answer("a", SHORT),
        lambda: engine.answer("a", AnswerSettings(kv="none")),
        lambda: engine.stream("a", SHORT).read(),
        lambda: engine.load(town(0).text),
        lambda: engine.ingest([town(1)]),
        lambda: engine.delete(["town-0"]),
        lambda: engine.prefetch(handles),
        lambda: engine.register_texts([UPLOAD]),
        lambda: engine.check(1),
        engine.metrics,
        lambda: engine.calibrated(None),
        lambda: calibrated.answer("a", AnswerSettings(kv="none")),
        lambda: engine.store.search("river"),
        lambda: engine.store.embeddings([]),
        lambda: engine.store.handle_of("a", "b"),
        engine.store.catalog.documents.all,
        lambda: retriever.invoke("river"),
        lambda: asyncio.run(retriever.ainvoke("river")),
        lambda: nodes.retrieve("river"),
        lambda: asyncio.run(nodes.aretrieve("river")),
        *(lambda model=model: model.invoke("river") for model in models),
        *(lambda model=model: asyncio.run(model.ainvoke("river")) for model in models),
        *(lambda model=model: list(model.stream("river")) for model in models),
        lambda: li.FusionRAGLLM(engine=engine).complete("river"),
        lambda: asyncio.run(li.FusionRAGLLM(engine=engine).acomplete("river")),
    ]
    for call in calls:
        with pytest.raises(StoreClosedError, match=r"The store at .* was closed here; open it"):
            call()
    with FusionEngine.open(engine.model, engine.store.path) as again:
        assert again.store.search("river", 1)


def test_what_only_uses_an_engine_leaves_it_open(engine: FusionEngine) -> None:
    with (
        lc.FusionKVRetriever(engine=engine),
        li.FusionKVRetriever(engine=engine),
        lc.FusionKVRetriever(store=engine.store),
        li.FusionKVRetriever(store=engine.store),
        engine.calibrated(None) as calibrated,
    ):
        pass
    with pytest.raises(StoreClosedError):
        calibrated.answer(town(0).text, SHORT)
    use(engine)


def test_a_calibrated_engine_outlives_the_variable_of_the_first(
    model: CausalModel, store: Path
) -> None:
    engine = FusionEngine.open(model, store).calibrated(None)
    gc.collect()
    use(engine)


def test_what_came_with_a_question_is_kept_before_it_is_closed(engine: FusionEngine) -> None:
    engine.register_texts([UPLOAD])
    engine.answer(UPLOAD, SHORT)
    engine.close()
    with FusionEngine.open(engine.model, engine.store.path) as again:
        assert again.answer(UPLOAD, SHORT).usage.reused_tokens


def test_a_stream_that_was_begun_ends_by_name(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    steps.hold_at(3)
    stream = engine.stream(town(0).text, LONG)
    next(stream)
    assert steps.is_held.wait(PATIENCE)
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join(0.1)
    steps.go_on()
    closing.join(PATIENCE)
    with pytest.raises(StoreClosedError):
        list(stream)  # what was said before is still there
    assert list(stream) == []
    assert steps.count == 3


@pytest.mark.parametrize("way", ["thread", "loop"])
def test_an_answer_under_way_ends_by_name(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    steps = Steps(monkeypatch)
    steps.hold_at(2)
    ended: list[BaseException] = []

    def ask() -> None:
        stream = engine.stream(town(0).text, LONG)
        try:
            if way == "thread":
                stream.read()
            else:
                asyncio.run(stream.aread())
        except StoreClosedError as error:
            ended.append(error)

    asking, closing = threading.Thread(target=ask), threading.Thread(target=engine.close)
    asking.start()
    assert steps.is_held.wait(PATIENCE)
    closing.start()
    closing.join(0.2)  # the pass under way is waited for
    steps.go_on()
    for thread in (asking, closing):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(ended) == 1
    assert steps.count <= 3


@pytest.mark.asyncio
async def test_requests_that_wait_for_a_thread_end_by_name(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    steps.hold_at(0)
    tasks = [asyncio.create_task(engine.stream(town(0).text, LONG).aread()) for _ in range(40)]
    await steps.held()
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    await asyncio.sleep(0.05)
    steps.go_on()
    await asyncio.wait_for(closing, PATIENCE)
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(ended, StoreClosedError)


class ClosingEmbedding(LexicalEmbedder):
    """Closes what asks it, in the thread that asks."""

    def __init__(self) -> None:
        self.close: Callable[[], None] = lambda: None

    def embed_query(self, text: str) -> list[float]:
        self.close()
        return super().embed_query(text)


@pytest.mark.parametrize("retriever", [lc.FusionKVRetriever, li.FusionKVRetriever])
def test_a_thread_of_its_own_may_close_it(
    model: CausalModel, store: Path, retriever: Callable[..., Any]
) -> None:
    before = set(threading.enumerate())
    embedding = ClosingEmbedding()
    with FusionEngine.open(model, store, embedding=embedding) as engine:
        searching = retriever(engine=engine)
        embedding.close = engine.close
        search = searching.ainvoke if hasattr(searching, "ainvoke") else searching.aretrieve
        with pytest.raises(StoreClosedError):
            asyncio.run(search("river"))
    with FusionEngine.open(model, store) as engine:
        assert asyncio.run(engine.threads.run(engine.close)) is None
        with pytest.raises(StoreClosedError):
            engine.store.search("river")
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_an_ingest_under_way_ends_by_name(engine: FusionEngine) -> None:
    def close(stage: str, done: int, total: int) -> None:
        if stage == "isolated":
            engine.close()

    with pytest.raises(StoreClosedError):
        engine.ingest([town(1), town(2)], progress=close)
    with FusionEngine.open(engine.model, engine.store.path) as again:
        assert again.ingest([town(1), town(2)]).documents_unchanged == 2


def test_searches_of_many_threads_end_by_name(engine: FusionEngine) -> None:
    ended: list[BaseException] = []

    def search() -> None:
        try:
            while True:
                engine.store.search("river", 1)
        except StoreClosedError as error:
            ended.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    engine.close()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(ended) == 4


def test_a_read_only_index_leaves_no_copy(store: Path, tmp_path: Path) -> None:
    index = store / "index"
    before = Held.now().directories
    mode = index.stat().st_mode
    index.chmod(0o500)
    try:
        with Store.open(store) as corpus:
            assert corpus.search("river", 1)
    finally:
        index.chmod(mode)
    assert Held.now().directories == before


LEFT = """
import atexit, sys, time
from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.serving.pipeline import Pipeline

decode, done = Pipeline.decode, []

def slow(*arguments):
    decode(*arguments)
    time.sleep(0.1)
    done.append(1)

Pipeline.decode = slow
engine = FusionEngine.from_pretrained(sys.argv[1], store=sys.argv[2])
stream = engine.stream("Where is the river?", AnswerSettings(max_tokens=200))
next(stream)
atexit.register(lambda: print(len(done)))
"""


def test_an_answer_that_nobody_reads_lets_the_interpreter_end(
    model_dir: Path, tmp_path: Path
) -> None:
    arguments = [sys.executable, "-c", LEFT, model_dir, tmp_path / "store"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=180, check=False)
    assert (int(done.stdout) < 20, done.returncode) == (True, 0), done.stderr


READ = LEFT.replace(
    "next(stream)",
    """
import threading
threading.Thread(target=lambda: print(len(stream.read().token_ids))).start()
""",
)


def test_one_that_another_thread_reads_is_whole_first(model_dir: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", READ.replace("200", "20"), model_dir, tmp_path / "store"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=180, check=False)
    read, *_ = done.stdout.split()
    assert (int(read) > 0, done.returncode) == (True, 0), done.stderr


def test_an_exception_in_the_block_closes_it(model: CausalModel, store: Path) -> None:
    with pytest.raises(KeyError), FusionEngine.open(model, store) as engine:
        raise KeyError
    with pytest.raises(StoreClosedError):
        engine.metrics()
