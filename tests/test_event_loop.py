"""Requests in an event loop leave its own threads to the application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations import langchain as lc
from fusionrag_integrations import llama_index as li
from fusionrag_integrations.documents.embedding import LexicalEmbedder
from tests.conftest import town
from tests.steps import PATIENCE, Steps

TEXT = town(0).text
THREADS = 1  # of the loop's own
REQUESTS = 8


class Slow(LexicalEmbedder):
    """The built-in embedding, which can be made to wait."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.at_work = 0

    def _wait(self) -> None:
        self.at_work += not self.go.is_set()
        assert self.go.wait(PATIENCE)

    def embed_query(self, text: str) -> list[float]:
        self._wait()
        return super().embed_query(text)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self._wait()
        return super().embed_documents(texts)


@pytest.fixture(scope="module")
def slow() -> Slow:
    return Slow()


@pytest.fixture(scope="module")
def engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory, slow: Slow) -> FusionEngine:
    store = tmp_path_factory.mktemp("loop") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48, embedding=slow)
    engine.ingest([town(0)])
    return engine


async def pieces(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


async def later(stream: Coroutine[Any, Any, AsyncIterator[Any]]) -> None:
    await pieces(await stream)


Ask = Callable[[FusionEngine], Coroutine[Any, Any, Any]]
LONG: dict[str, Any] = {"max_tokens": 4}
SETTINGS = AnswerSettings(max_tokens=4)
CHAT = [ChatMessage(content=TEXT)]
ANSWERS: dict[str, Ask] = {
    "aread": lambda e: e.stream(TEXT, SETTINGS).aread(),
    "async for": lambda e: pieces(e.stream(TEXT, SETTINGS)),
    "llm.ainvoke": lambda e: lc.FusionRAGLLM(engine=e, **LONG).ainvoke(TEXT),
    "llm.astream": lambda e: pieces(lc.FusionRAGLLM(engine=e, **LONG).astream(TEXT)),
    "llm.abatch": lambda e: lc.FusionRAGLLM(engine=e, **LONG).abatch([TEXT]),
    "chat.ainvoke": lambda e: lc.ChatFusionRAG(engine=e, **LONG).ainvoke(TEXT),
    "chat.astream": lambda e: pieces(lc.ChatFusionRAG(engine=e, **LONG).astream(TEXT)),
    "acomplete": lambda e: li.FusionRAGLLM(engine=e, **LONG).acomplete(TEXT),
    "astream_complete": lambda e: later(li.FusionRAGLLM(engine=e, **LONG).astream_complete(TEXT)),
    "achat": lambda e: li.FusionRAGLLM(engine=e, **LONG).achat(CHAT),
    "astream_chat": lambda e: later(li.FusionRAGLLM(engine=e, **LONG).astream_chat(CHAT)),
}
SEARCHES: dict[str, Ask] = {
    "langchain": lambda e: lc.FusionKVRetriever(engine=e).ainvoke("river"),
    "llama_index": lambda e: li.FusionKVRetriever(engine=e).aretrieve("river"),
    "acall": lambda e: li.FusionKVTransform(engine=e).acall([TextNode(text="A new fox.")]),
}


async def the_loop_is_free(
    asked: list[asyncio.Task[Any]], under_way: Callable[[], bool], go_on: Callable[[], None]
) -> None:
    """With requests under way, a call in one of the loop's own threads comes back at once."""
    try:
        for _ in range(500):
            if under_way():
                break
            await asyncio.sleep(0.01)
        assert under_way()
        await asyncio.wait_for(asyncio.to_thread(lambda: None), 1)
        assert not any(task.done() for task in asked)
    finally:
        go_on()
        await asyncio.gather(*asked, return_exceptions=True)


@pytest_asyncio.fixture(autouse=True)
async def few_threads() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))


@pytest.mark.parametrize("way", ANSWERS)
@pytest.mark.asyncio
async def test_answers_leave_the_loop_its_threads(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    steps = Steps(monkeypatch)
    steps.hold_at(0)
    asked = [asyncio.create_task(ANSWERS[way](engine)) for _ in range(REQUESTS)]
    await the_loop_is_free(asked, steps.is_held.is_set, steps.go_on)
    for task in asked:
        assert task.exception() is None


@pytest.mark.parametrize("way", SEARCHES)
@pytest.mark.asyncio
async def test_searches_leave_the_loop_its_threads(
    engine: FusionEngine, slow: Slow, way: str
) -> None:
    slow.at_work = 0
    slow.go.clear()
    count = 1 if way == "acall" else REQUESTS  # one at a time may change a store
    asked = [asyncio.create_task(SEARCHES[way](engine)) for _ in range(count)]
    await the_loop_is_free(asked, lambda: slow.at_work >= min(count, THREADS), slow.go.set)
    for task in asked:
        assert task.exception() is None


@pytest.mark.asyncio
async def test_searches_go_on_while_one_thread_computes_all_answers(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    steps.hold_at(0)
    asked = [asyncio.create_task(ANSWERS["aread"](engine)) for _ in range(50)]
    try:
        await steps.held()
        names = [thread.name for thread in threading.enumerate()]
        assert sum(name.startswith("fusionrag-passes") for name in names) == 1
        assert await asyncio.wait_for(SEARCHES["langchain"](engine), PATIENCE)
    finally:
        steps.go_on()
        await asyncio.gather(*asked)


@pytest.mark.asyncio
async def test_cancelled_before_its_first_token_it_computes_none(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    steps.hold_at(0)
    asked = [asyncio.create_task(ANSWERS["aread"](engine)) for _ in range(50)]
    await steps.held()
    for task in asked:
        task.cancel()
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended)
    steps.go_on()
    assert steps.count == 0
    assert (await engine.stream(TEXT, SETTINGS).aread()).usage.completion_tokens == 4
