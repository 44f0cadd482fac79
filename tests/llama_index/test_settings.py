"""Settings of a model and of one call, in all eight methods; and what observers see of a call."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMChatInProgressEvent
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
from llama_index.core.query_engine import RetrieverQueryEngine

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionRAGLLM
from tests.llama_index.helpers import MAX_TOKENS, QUESTION, Noting

METHODS = ("complete", "stream_complete", "chat", "stream_chat")
CHANGES: dict[str, dict[str, Any]] = {
    "ratio": {"ratio": 0.3},
    "selector": {"selector": "none"},
    "kv": {"kv": "isolated"},
    "full attention": {"kv": "none"},
    "max_tokens": {"max_tokens": 2},
    "scopes": {"scopes": ["north"]},
    "sampling": {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 3},
}


@pytest.fixture(scope="module")
def prompt(engine: FusionEngine) -> str:
    nodes = FusionKVRetriever(engine=engine, similarity_top_k=3).retrieve(QUESTION)
    return "\n\n".join([*(node.text for node in nodes), QUESTION])


async def last_response(llm: FusionRAGLLM, method: str, prompt: str, **changes: Any) -> Any:
    """What a method gives; a stream's last response."""
    asked: Any = [ChatMessage(content=prompt)] if "chat" in method else prompt
    response = getattr(llm, method)(asked, **changes)
    if method.startswith("a"):
        response = await response
        if "stream" in method:
            response = [item async for item in response][-1]
    elif "stream" in method:
        response = list(response)[-1]
    return response


def text_of(response: Any) -> str:
    return str(response.message.content if hasattr(response, "message") else response.text)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("method", [*METHODS, *(f"a{method}" for method in METHODS)])
@pytest.mark.asyncio
async def test_a_call_and_a_model_with_the_same_settings_answer_alike(
    engine: FusionEngine, prompt: str, method: str, changes: dict[str, Any]
) -> None:
    settings = AnswerSettings(max_tokens=MAX_TOKENS).changed(
        {name: tuple(v) if isinstance(v, list) else v for name, v in changes.items()}
    )
    expected = engine.answer(prompt, settings)
    by_call = await last_response(
        FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS), method, prompt, **changes
    )
    fields = {"max_tokens": MAX_TOKENS} | changes
    by_field = await last_response(FusionRAGLLM(engine=engine, **fields), method, prompt)
    for response in (by_call, by_field):
        assert text_of(response) == expected.text
        assert response.raw["usage"] == expected.report()["usage"]
        assert response.raw["chunks"] == expected.report()["chunks"]


def test_the_changes_make_a_difference(engine: FusionEngine, prompt: str) -> None:
    llm = FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS)
    plain = llm.complete(prompt).raw
    usages = {name: llm.complete(prompt, **changes).raw for name, changes in CHANGES.items()}
    assert usages["ratio"]["usage"]["recompute_ratio"] == pytest.approx(0.3, abs=0.02)
    assert usages["selector"]["usage"]["recomputed_tokens"] == 0
    assert usages["kv"]["chunks"] == {"fused": 0, "isolated": 3, "missed": 0, "captured": 0}
    assert usages["full attention"]["usage"]["fresh_tokens"] == plain["usage"]["prompt_tokens"]
    assert usages["max_tokens"]["usage"]["completion_tokens"] == 2
    assert usages["scopes"]["chunks"] == {"fused": 0, "isolated": 0, "missed": 0, "captured": 0}
    assert plain["chunks"] == {"fused": 2, "isolated": 1, "missed": 0, "captured": 0}
    sampled = llm.complete(prompt, **CHANGES["sampling"]).text
    assert sampled != llm.complete(prompt).text


@pytest.mark.parametrize("method", [*METHODS, "astream_chat"])
@pytest.mark.asyncio
async def test_a_stop_string_ends_an_answer_inside_and_across_tokens(
    engine: FusionEngine, prompt: str, method: str
) -> None:
    llm = FusionRAGLLM(engine=engine, max_tokens=16)
    whole = text_of(await last_response(llm, method, prompt))
    pieces = [r.delta for r in llm.stream_complete(prompt) if r.delta]
    border = len(pieces[0])
    stops = {whole[2:5], whole[border - 1 : border + 2], whole[-3:]}
    assert any(stop not in piece for piece in pieces for stop in stops)
    for stop in stops:
        cut = whole[: whole.index(stop)]
        assert text_of(await last_response(llm, method, prompt, stop=[stop])) == cut
        stopping = FusionRAGLLM(engine=engine, max_tokens=16, stop=["never said", stop])
        assert text_of(await last_response(stopping, method, prompt)) == cut


def query_engine(engine: FusionEngine, **arguments: Any) -> RetrieverQueryEngine:
    return RetrieverQueryEngine.from_args(
        retriever=FusionKVRetriever(engine=engine, similarity_top_k=3),
        llm=FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS),
        **arguments,
    )


@pytest.mark.parametrize("way", ["query", "aquery"])
@pytest.mark.asyncio
async def test_events_tell_what_was_retrieved_and_how_the_answer_came_about(
    engine: FusionEngine, noting: Noting, way: str
) -> None:
    asked = query_engine(engine)
    response = asked.query(QUESTION) if way == "query" else await asked.aquery(QUESTION)
    [retrieved] = noting.of(RetrievalEndEvent)
    assert retrieved.nodes == response.source_nodes
    [ended] = noting.of(LLMChatEndEvent)
    assert ended.response.message.content == str(response)
    assert ended.response.raw["usage"]["reused_tokens"] > 0
    assert ended.messages[-1].content.endswith("Answer: ")


def test_events_follow_a_stream(engine: FusionEngine, noting: Noting) -> None:
    response: Any = query_engine(engine, streaming=True).query(QUESTION)
    pieces = list(response.response_gen)
    assert [event.response.delta for event in noting.of(LLMChatInProgressEvent)] == pieces
    [ended] = noting.of(LLMChatEndEvent)
    assert ended.response.raw["chunks"]["fused"] == 3


def test_callbacks_see_one_call_with_its_prompt_and_answer(engine: FusionEngine) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    llm = FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS)
    llm.callback_manager = CallbackManager([handler])
    response = llm.complete(QUESTION)
    [(start, end)] = handler.get_event_pairs(CBEventType.LLM)
    assert start.payload[EventPayload.PROMPT] == QUESTION  # type: ignore[index]
    assert end.payload[EventPayload.COMPLETION] == response  # type: ignore[index]
    assert "engine" not in start.payload[EventPayload.SERIALIZED]  # type: ignore[index]
