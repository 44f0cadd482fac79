"""Work ends with the answer: at a stop string, when a stream is closed or a task cancelled."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.query_engine import RetrieverQueryEngine

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionRAGLLM
from tests.llama_index.helpers import QUESTION, Noting
from tests.steps import (
    PATIENCE,
    Steps,
    kv_in_use,
    steps_until,
    until_kv_is_free,
    wait_until_kv_is_free,
)

MAX_TOKENS = 40
METHODS = ("complete", "stream_complete", "chat", "stream_chat")
STREAMS = [method for method in METHODS if "stream" in method]


@pytest.fixture(scope="module")
def prompt(engine: FusionEngine) -> str:
    nodes = FusionKVRetriever(engine=engine, similarity_top_k=3).retrieve(QUESTION)
    return "\n\n".join([*(node.text for node in nodes), QUESTION])


@pytest.fixture
def llm(engine: FusionEngine) -> FusionRAGLLM:
    return FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def asked(llm: FusionRAGLLM, method: str, prompt: str, **changes: Any) -> Any:
    given: Any = [ChatMessage(content=prompt)] if "chat" in method else prompt
    return getattr(llm, method)(given, **changes)


async def said(llm: FusionRAGLLM, method: str, prompt: str, **changes: Any) -> str:
    """All that is said, of streams the sum of what is new in each response."""
    found = asked(llm, method, prompt, **changes)
    if method.startswith("a"):
        found = await found
    if "astream" in method:
        return "".join([response.delta async for response in found])
    if "stream" in method:
        return "".join(response.delta for response in found)
    return str(found.message.content if "chat" in method else found.text)


@pytest.mark.parametrize("method", [*METHODS, *(f"a{method}" for method in METHODS)])
@pytest.mark.asyncio
async def test_a_stop_string_ends_decode_with_its_last_token(
    engine: FusionEngine, llm: FusionRAGLLM, prompt: str, steps: Steps, method: str
) -> None:
    settings = AnswerSettings(max_tokens=MAX_TOKENS)
    pieces = list(engine.stream(prompt, settings))
    answer = engine.answer(prompt, settings)
    at, stop = next(  # the end of a piece and the beginning of the next
        (at, border)
        for at in range(2, len(pieces))
        if answer.text.count(border := pieces[at - 1][-1] + pieces[at][0]) == 1
    )
    steps.count = 0
    assert at > 1
    assert await said(llm, method, prompt, stop=[stop]) == answer.text.partition(stop)[0]
    assert steps.count == steps_until(engine, answer.token_ids, stop) < MAX_TOKENS - 1
    assert kv_in_use(engine) == 0


@pytest.mark.parametrize("method", STREAMS)
def test_a_stream_that_is_closed_decodes_nothing_more_and_frees_its_kv(
    engine: FusionEngine, llm: FusionRAGLLM, prompt: str, steps: Steps, method: str
) -> None:
    steps.hold_at(5)
    stream = asked(llm, method, prompt)
    next(stream)
    assert steps.is_held.wait(PATIENCE)
    assert kv_in_use(engine) == 3
    stream.close()
    steps.go_on()
    wait_until_kv_is_free(engine)
    assert list(stream) == []
    assert steps.count == 5


@pytest.mark.parametrize("method", STREAMS)
@pytest.mark.asyncio
async def test_so_does_an_asynchronous_one(
    engine: FusionEngine, llm: FusionRAGLLM, prompt: str, steps: Steps, method: str
) -> None:
    steps.hold_at(5)
    stream = await asked(llm, f"a{method}", prompt)
    await anext(stream)
    await steps.held()
    assert kv_in_use(engine) == 3
    await stream.aclose()
    await steps.cancelled()
    steps.go_on()
    await until_kv_is_free(engine)
    assert steps.count == 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("held_at", [0, 3])
@pytest.mark.asyncio
async def test_a_cancelled_task_ends_after_the_step_under_way(
    engine: FusionEngine, llm: FusionRAGLLM, prompt: str, steps: Steps, method: str, held_at: int
) -> None:
    await steps.cancel_at(held_at, said(llm, f"a{method}", prompt), engine)
    assert steps.count == held_at


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.asyncio
async def test_a_cancelled_query_does_too(
    engine: FusionEngine, llm: FusionRAGLLM, steps: Steps, noting: Noting, streaming: bool
) -> None:
    retriever = FusionKVRetriever(engine=engine, similarity_top_k=3)
    asked = RetrieverQueryEngine.from_args(retriever=retriever, llm=llm, streaming=streaming)

    async def query() -> None:
        response: Any = await asked.aquery(QUESTION)
        if streaming:
            async for _ in response.async_response_gen():
                pass

    await steps.cancel_at(3, query(), engine)
    assert steps.count == 3
    names = [event.class_name() for event in noting.of(object)]
    assert "LLMChatStartEvent" in names
    assert "LLMChatEndEvent" not in names


@pytest.mark.asyncio
async def test_a_cancelled_chat_does_too(
    engine: FusionEngine, llm: FusionRAGLLM, steps: Steps
) -> None:
    retriever = FusionKVRetriever(engine=engine, similarity_top_k=3)
    chatting = ContextChatEngine.from_defaults(retriever=retriever, llm=llm)
    await steps.cancel_at(3, chatting.achat(QUESTION), engine)
    assert steps.count == 3
    assert chatting.chat_history == []


def test_a_query_whose_stream_is_left_frees_its_kv(
    engine: FusionEngine, llm: FusionRAGLLM, steps: Steps
) -> None:
    retriever = FusionKVRetriever(engine=engine, similarity_top_k=3)
    asked = RetrieverQueryEngine.from_args(retriever=retriever, llm=llm, streaming=True)
    steps.hold_at(5)
    response: Any = asked.query(QUESTION)
    next(response.response_gen)
    assert steps.is_held.wait(PATIENCE)
    assert kv_in_use(engine) == 3
    response.response_gen.close()
    steps.go_on()
    wait_until_kv_is_free(engine)
    assert steps.count == 5
