"""What LlamaIndex's observers see: events, spans and callbacks of every method; counted tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    EventPayload,
    LlamaDebugHandler,
    TokenCountingHandler,
)
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.instrumentation.events.retrieval import (
    RetrievalEndEvent,
    RetrievalStartEvent,
)
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.query_engine import RetrieverQueryEngine

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionRAGLLM
from tests.llama_index.helpers import MAX_TOKENS, QUESTION, Noting

METHODS = ("complete", "stream_complete", "chat", "stream_chat")
ALL_METHODS = [*METHODS, *(f"a{method}" for method in METHODS)]

each_method = pytest.mark.parametrize("method", ALL_METHODS)


@pytest.fixture
def llm(engine: FusionEngine) -> FusionRAGLLM:
    return FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS)


@pytest.fixture
def retriever(engine: FusionEngine) -> FusionKVRetriever:
    return FusionKVRetriever(engine=engine, similarity_top_k=3)


async def responses(llm: FusionRAGLLM, method: str, prompt: str = QUESTION) -> list[Any]:
    """What a method gives; of a stream, each response."""
    given: Any = [ChatMessage(content=prompt)] if "chat" in method else prompt
    found = getattr(llm, method)(given)
    if method.startswith("a"):
        found = await found
    if "astream" in method:
        return [response async for response in found]
    return list(found) if "stream" in method else [found]


@each_method
@pytest.mark.asyncio
async def test_events_are_a_start_what_goes_on_and_an_end(
    llm: FusionRAGLLM, noting: Noting, method: str
) -> None:
    found = await responses(llm, method)
    start, going_on, end = (
        (LLMChatStartEvent, LLMChatInProgressEvent, LLMChatEndEvent)
        if "chat" in method
        else (LLMCompletionStartEvent, LLMCompletionInProgressEvent, LLMCompletionEndEvent)
    )
    [started] = noting.of(start)
    [ended] = noting.of(end)
    assert started.model_dict["model_name"] == llm.engine.model_name
    assert started.model_dict["class_name"] == "FusionRAGLLM"
    assert started.span_id == ended.span_id is not None
    assert ended.response == found[-1]
    assert ended.response.raw["usage"]["completion_tokens"] == MAX_TOKENS
    assert noting.of(ExceptionEvent) == []
    during = [event.response for event in noting.of(going_on)]
    assert during == (found if "stream" in method else [])


@each_method
@pytest.mark.asyncio
async def test_callbacks_get_what_was_asked_and_said(llm: FusionRAGLLM, method: str) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    llm.callback_manager = CallbackManager([handler])
    found = await responses(llm, method)
    [(start, end)] = handler.get_event_pairs(CBEventType.LLM)
    assert start.payload is not None
    assert end.payload is not None
    assert "engine" not in start.payload[EventPayload.SERIALIZED]
    if "chat" in method:
        assert start.payload[EventPayload.MESSAGES][0].content == QUESTION
        assert end.payload[EventPayload.RESPONSE] == found[-1]
    else:
        assert start.payload[EventPayload.PROMPT] == QUESTION
        assert end.payload[EventPayload.COMPLETION] == found[-1]


@each_method
@pytest.mark.asyncio
async def test_callbacks_hear_of_errors(llm: FusionRAGLLM, method: str) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    llm.callback_manager = CallbackManager([handler])
    with pytest.raises(InvalidInputError, match="empty"):
        await responses(llm, method, " ")
    [(_, end)] = handler.get_event_pairs(CBEventType.LLM)
    assert end.payload is not None
    assert isinstance(end.payload[EventPayload.EXCEPTION], InvalidInputError)


class Spans(SimpleSpanHandler):
    """Those that ended, by the name of the method."""

    def names(self) -> list[str]:
        return [span.id_.rpartition("-")[0].split("-")[0] for span in self.completed_spans]


@pytest.fixture
def spans() -> Iterator[Spans]:
    handler, dispatcher = Spans(), get_dispatcher()
    dispatcher.add_span_handler(handler)
    yield handler
    dispatcher.span_handlers.remove(handler)


@each_method
@pytest.mark.asyncio
async def test_a_call_is_a_span(llm: FusionRAGLLM, spans: Spans, method: str) -> None:
    await responses(llm, method)
    assert spans.names() == [f"FusionRAGLLM.{method}"]
    assert spans.dropped_spans == []


@pytest.mark.parametrize("way", ["retrieve", "aretrieve"])
@pytest.mark.asyncio
async def test_retrieval_is_seen_in_every_way(
    engine: FusionEngine, noting: Noting, spans: Spans, way: str
) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    retriever = FusionKVRetriever(engine=engine, callback_manager=CallbackManager([handler]))
    found = getattr(retriever, way)(QUESTION)
    nodes = await found if way == "aretrieve" else found
    [started] = noting.of(RetrievalStartEvent)
    [ended] = noting.of(RetrievalEndEvent)
    assert started.str_or_query_bundle == QUESTION
    assert ended.nodes == nodes != []
    [(start, end)] = handler.get_event_pairs(CBEventType.RETRIEVE)
    assert start.payload == {EventPayload.QUERY_STR: QUESTION}
    assert end.payload == {EventPayload.NODES: nodes}
    assert "FusionKVRetriever._retrieve" in spans.names()
    assert spans.names()[-1].endswith(f".{way}")


class TestCountedTokens:
    """`TokenCountingHandler` takes the model's own counts, and its tokenizer for the rest."""

    @pytest.fixture
    def counter(self, engine: FusionEngine) -> TokenCountingHandler:
        return TokenCountingHandler(tokenizer=engine.encode)

    @each_method
    @pytest.mark.asyncio
    async def test_of_a_call_are_those_that_the_model_read_and_said(
        self, engine: FusionEngine, llm: FusionRAGLLM, counter: TokenCountingHandler, method: str
    ) -> None:
        llm.callback_manager = CallbackManager([counter])
        await responses(llm, method)
        usage = engine.answer(QUESTION, AnswerSettings(max_tokens=MAX_TOKENS)).usage
        assert counter.prompt_llm_token_count == usage.prompt_tokens
        assert counter.completion_llm_token_count == usage.completion_tokens == MAX_TOKENS
        # A count by text would miss the chat template.
        assert usage.prompt_tokens > len(engine.encode(QUESTION))

    def test_of_a_query_are_counted_once(
        self,
        llm: FusionRAGLLM,
        retriever: FusionKVRetriever,
        counter: TokenCountingHandler,
        noting: Noting,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(Settings, "_callback_manager", CallbackManager([counter]))
        RetrieverQueryEngine.from_args(retriever, llm).query(QUESTION)
        [ended] = noting.of(LLMChatEndEvent)
        assert counter.total_llm_token_count == ended.response.additional_kwargs["total_tokens"]

    def test_are_seen_where_the_settings_say_so(
        self, llm: FusionRAGLLM, counter: TokenCountingHandler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Settings, "_llm", llm)
        monkeypatch.setattr(Settings, "_callback_manager", CallbackManager([counter]))
        Settings.llm.complete(QUESTION)
        assert counter.completion_llm_token_count == MAX_TOKENS

    @each_method
    @pytest.mark.asyncio
    async def test_stand_under_their_common_names(self, llm: FusionRAGLLM, method: str) -> None:
        *before, last = await responses(llm, method)
        usage = last.raw["usage"]
        assert last.additional_kwargs == {
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
        }
        assert all(response.additional_kwargs == {} for response in before)
