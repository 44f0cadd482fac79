"""A stream that is closed, a task that is cancelled: the server works for nobody who left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import fusionrag_integrations.langchain as lc
import fusionrag_integrations.llama_index as li
from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.adapters.remote import RemoteEngine
from fusionrag_integrations.errors import FusionRAGError
from tests.remote.loopback import LOOPBACK
from tests.steps import Steps, kv_in_use
from tests.waiting import until

pytestmark = LOOPBACK

QUESTION = "Where is house 15 of town number 2?"
TOKENS = 200


@pytest.fixture(scope="module")
def prompt(engine: FusionEngine) -> str:
    documents = lc.FusionKVRetriever(engine=engine, k=3).invoke(QUESTION)
    return "\n\n".join([*(document.page_content for document in documents), QUESTION])


@pytest.fixture(scope="module")
def long(engine: FusionEngine, prompt: str) -> dict[str, Any]:
    """Settings with which the answer is long: the model says anything, but no end."""
    for seed in range(20):
        settings = {"max_tokens": TOKENS, "temperature": 5.0, "seed": seed}
        answer = engine.answer(prompt, AnswerSettings(**settings))
        if answer.usage.completion_tokens == TOKENS:
            return settings
    raise AssertionError("Every answer ends early.")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, long: dict[str, Any]) -> Steps:
    return Steps(monkeypatch)


def ended(engine: FusionEngine, steps: Steps) -> None:
    """The server's request has ended, long before its last token."""
    until(lambda: not kv_in_use(engine))
    assert 0 < steps.count < TOKENS / 2


def first_pieces(stream: Any) -> None:
    for _ in range(3):
        next(stream)


def test_a_closed_stream(
    engine: FusionEngine, base_url: str, prompt: str, long: dict[str, Any], steps: Steps
) -> None:
    with lc.FusionRAGLLM(base_url=base_url, **long) as llm:
        stream: Any = llm.stream(prompt)
        first_pieces(stream)
        assert kv_in_use(engine)
        stream.close()
        ended(engine, steps)


def test_a_forgotten_stream(
    engine: FusionEngine, base_url: str, prompt: str, long: dict[str, Any], steps: Steps
) -> None:
    with li.FusionRAGLLM(base_url=base_url, **long) as llm:
        first_pieces(llm.stream_complete(prompt))
        ended(engine, steps)


def test_a_closed_stream_that_somebody_still_has(
    engine: FusionEngine, base_url: str, prompt: str, long: dict[str, Any], steps: Steps
) -> None:
    with RemoteEngine(base_url) as remote:
        stream = remote.stream(prompt, AnswerSettings(**long))
        first_pieces(stream)
        stream.close()
        stream.close()
        ended(engine, steps)
        assert list(stream) == []


def test_a_stream_closed_by_another_thread(
    engine: FusionEngine, base_url: str, prompt: str, long: dict[str, Any], steps: Steps
) -> None:
    """While one waits for a piece, it ends with that piece."""
    with RemoteEngine(base_url) as remote:
        stream = remote.stream(prompt, AnswerSettings(**long))
        first_pieces(stream)

        async def closed_meanwhile() -> list[str]:
            steps.hold_at(steps.count + 2)
            reading = asyncio.create_task(asyncio.to_thread(list, stream))
            await steps.held()
            stream.close()
            steps.go_on()
            return await reading

        assert len(asyncio.run(closed_meanwhile())) < 10
        ended(engine, steps)
        with pytest.raises(FusionRAGError, match="once its stream has been read"):
            stream.read()


@pytest.mark.parametrize("way", ["astream", "left", "closed", "closed from a thread"])
@pytest.mark.asyncio
async def test_an_asynchronous_stream(
    way: str, engine: FusionEngine, base_url: str, prompt: str, long: dict[str, Any], steps: Steps
) -> None:
    with RemoteEngine(base_url) as remote, lc.FusionRAGLLM(base_url=base_url) as llm:
        if way == "astream":
            chunks: Any = llm.astream(prompt, **long)
            for _ in range(3):
                await anext(chunks)
            await chunks.aclose()
        else:
            stream = remote.stream(prompt, AnswerSettings(**long))
            for _ in range(3):
                await anext(stream)
            if way == "left":
                await stream.aclose()
            elif way == "closed":
                stream.close()
            else:
                await asyncio.to_thread(stream.close)
            assert way == "left" or [piece async for piece in stream] == []
        await asyncio.to_thread(ended, engine, steps)


CALLS: dict[str, Any] = {
    "ainvoke": lambda url, prompt, long: lc.FusionRAGLLM(base_url=url, **long).ainvoke(prompt),
    "chat": lambda url, prompt, long: lc.ChatFusionRAG(base_url=url, **long).ainvoke(prompt),
    "acomplete": lambda url, prompt, long: li.FusionRAGLLM(base_url=url, **long).acomplete(prompt),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.asyncio
async def test_a_cancelled_task(
    name: str, engine: FusionEngine, base_url: str, prompt: str, long: dict[str, Any], steps: Steps
) -> None:
    steps.hold_at(4)
    task = asyncio.create_task(CALLS[name](base_url, prompt, long))
    await steps.held()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task  # at once, for the step is still held
    steps.go_on()
    await asyncio.to_thread(ended, engine, steps)
