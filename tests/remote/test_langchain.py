"""LangChain's components over a server answer and find what those over its engine do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import tool

from fusionrag_integrations import FusionEngine, KVHandle
from fusionrag_integrations.errors import InvalidInputError, PromptTooLongError
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever, FusionRAGLLM
from tests.conftest import town
from tests.langchain.chains import WORDS, join
from tests.remote.loopback import LOOPBACK

pytestmark = LOOPBACK

QUESTION = "Where is house 15 of town number 2?"
SETTINGS: list[dict[str, Any]] = [
    {},
    {"kv": "none"},
    {"ratio": 0.5, "selector": "cacheblend", "stop": ["e"]},
    {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 3, "repetition_penalty": 1.2},
    {"scopes": ["north"]},
    {"raw": True},
]


@tool
def weather(place: str) -> str:
    """How the weather is at a place."""
    return f"{place}: fair"


@pytest.fixture
def prompt(engine: FusionEngine) -> str:
    context = join(FusionKVRetriever(engine=engine, k=3).invoke(QUESTION))
    return WORDS.format(context=context, question=QUESTION)


@pytest.fixture
def llm(base_url: str) -> Iterator[FusionRAGLLM]:
    with FusionRAGLLM(base_url=base_url, max_tokens=12) as llm:
        yield llm


@pytest.fixture
def chat(base_url: str) -> Iterator[ChatFusionRAG]:
    with ChatFusionRAG(base_url=base_url, max_tokens=12) as chat:
        yield chat


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name != "ttft_ms"}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.asyncio
async def test_a_text_is_the_same_in_every_way_to_ask(
    engine: FusionEngine, llm: FusionRAGLLM, prompt: str, settings: dict[str, Any]
) -> None:
    local = FusionRAGLLM(engine=engine, max_tokens=12)
    expected = local.generate([prompt], **settings)
    given = await asyncio.to_thread(llm.generate, [prompt], **settings)
    for result in (given, await llm.agenerate([prompt], **settings)):
        (told,), (wanted,) = result.generations[0], expected.generations[0]
        assert told.text == wanted.text
        assert timeless(told.generation_info) == timeless(wanted.generation_info)
        assert result.llm_output == expected.llm_output
    pieces = list(local.stream(prompt, **settings))
    assert await asyncio.to_thread(lambda: list(llm.stream(prompt, **settings))) == pieces
    assert [piece async for piece in llm.astream(prompt, **settings)] == pieces


@pytest.mark.asyncio
async def test_messages_are_the_same_in_every_way_to_ask(
    engine: FusionEngine, chat: ChatFusionRAG, prompt: str
) -> None:
    messages = [SystemMessage("Answer briefly."), HumanMessage(prompt)]
    expected = ChatFusionRAG(engine=engine, max_tokens=12).invoke(messages)
    streamed = None
    for chunk in await asyncio.to_thread(lambda: list(chat.stream(messages))):
        streamed = chunk if streamed is None else streamed + chunk
    whole = await asyncio.to_thread(chat.invoke, messages)
    for given in (whole, await chat.ainvoke(messages), streamed):
        assert given is not None
        assert given.content == expected.content
        assert given.usage_metadata == expected.usage_metadata
        assert timeless(given.response_metadata) == timeless(expected.response_metadata)
    assert expected.usage_metadata is not None
    assert expected.usage_metadata["input_token_details"]["cache_read"] > 0


def test_tools_and_a_conversation_with_calls_reach_the_template(
    engine: FusionEngine, chat: ChatFusionRAG
) -> None:
    local = ChatFusionRAG(engine=engine, max_tokens=12)
    place = 'Bü "x"'
    call = {"name": "weather", "args": {"place": place}, "id": "call12345", "type": "tool_call"}
    talk = [
        HumanMessage("Is it fair?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("Bü: fair", tool_call_id="call12345", name="weather"),
    ]
    for messages in (talk[:1], talk):
        expected = local.bind_tools([weather]).invoke(messages)
        given = chat.bind_tools([weather]).invoke(messages)
        assert given.content == expected.content
        assert given.usage_metadata == expected.usage_metadata
        counts = [m.get_num_tokens_from_messages(messages, [weather]) for m in (local, chat)]
        assert counts[0] == counts[1] == expected.usage_metadata["input_tokens"]


def test_a_call_that_the_model_writes_is_a_call(
    engine: FusionEngine, chat: ChatFusionRAG, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text that a model would write is put into its mouth."""
    written = 'So: <tool_call>{"name": "weather", "arguments": {"place": "Ulm"}}</tool_call>'
    say(engine, written, monkeypatch)
    bound = chat.bind_tools([weather], max_tokens=100)
    message = bound.invoke("Is it fair in Ulm?")
    assert message.content == "So:"
    assert [(c["name"], c["args"]) for c in message.tool_calls] == [("weather", {"place": "Ulm"})]
    chunks = list(bound.stream("Is it fair in Ulm?"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert (whole.content, len(whole.tool_calls)) == ("So:", 1)


def say(engine: FusionEngine, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusionrag_integrations.execution.decoding import DecodedToken, TokenChooser

    *ids, last = engine.encode(text)
    said: WeakKeyDictionary[TokenChooser, Iterator[DecodedToken]] = WeakKeyDictionary()

    def spoken(chooser: TokenChooser, logits: torch.Tensor) -> DecodedToken:
        tokens = [*(DecodedToken(i, None) for i in ids), DecodedToken(last, "stop")]
        return next(said.setdefault(chooser, iter(tokens)))

    monkeypatch.setattr(TokenChooser, "choose", spoken)


def test_handles_name_what_is_too_short_to_be_found(
    engine: FusionEngine, llm: FusionRAGLLM, prompt: str
) -> None:
    documents = FusionKVRetriever(engine=engine, k=3).invoke(QUESTION)
    handles = [KVHandle.from_metadata(document.metadata) for document in documents]
    local = FusionRAGLLM(engine=engine, max_tokens=12)
    assert llm.invoke(prompt, handles=handles) == local.invoke(prompt, handles=handles)


def test_tokens_are_counted_by_the_server(
    engine: FusionEngine, llm: FusionRAGLLM, chat: ChatFusionRAG
) -> None:
    text = "The <|user|> fox"
    assert llm.get_token_ids(text) == engine.encode(text)
    assert chat.get_num_tokens(text) == len(engine.encode(text))
    begun = [AIMessage("A part of a chat that begins with an answer.")]
    local = ChatFusionRAG(engine=engine)
    assert chat.get_num_tokens_from_messages(begun) == local.get_num_tokens_from_messages(begun)


def test_errors_are_those_of_an_engine(llm: FusionRAGLLM, prompt: str) -> None:
    with pytest.raises(PromptTooLongError, match="the context of"):
        llm.invoke(prompt * 40)
    with pytest.raises(PromptTooLongError):
        list(llm.stream(prompt * 40))
    with pytest.raises(InvalidInputError, match="The prompt is empty"):
        llm.invoke("")
    with pytest.raises(InvalidInputError, match="no selector 'best'"):
        llm.invoke(prompt, selector="best")
    with pytest.raises(InvalidInputError, match="Tools are given to a model by its chat template"):
        llm.invoke(prompt, raw=True, tools=[{"type": "function", "function": {"name": "f"}}])


@pytest.mark.parametrize(
    "search",
    [
        {},
        {"k": 2, "scopes": ["north"]},
        {"filter": {"page": 7}},
        {"score_threshold": 0.3},
        {"search_type": "mmr", "fetch_k": 6, "lambda_mult": 0.3, "k": 3},
    ],
    ids=str,
)
@pytest.mark.asyncio
async def test_documents_are_those_of_an_engine(
    engine: FusionEngine, base_url: str, search: dict[str, Any]
) -> None:
    local = FusionKVRetriever(engine=engine, **search)
    with FusionKVRetriever(base_url=base_url, **search) as retriever:
        expected = local.invoke(QUESTION)
        assert expected
        assert await asyncio.to_thread(retriever.invoke, QUESTION) == expected
        assert await retriever.ainvoke(QUESTION) == expected
        scored = await asyncio.to_thread(retriever.similarity_search_with_score, QUESTION)
        assert scored == local.similarity_search_with_score(QUESTION)
        with pytest.raises(InvalidInputError, match="question is empty"):
            await retriever.ainvoke(" ")


class Own(BaseRetriever):
    """A user's own: two towns' texts, and one that nobody knows."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        texts = [*town(1).text.split("\n\n")[:2], "A text that no store holds, of some length."]
        return [Document(text, metadata={"source": "town-1"}) for text in texts]


@pytest.mark.asyncio
async def test_ones_own_retriever_gets_handles(engine: FusionEngine, base_url: str) -> None:
    expected = FusionKVRetriever(engine=engine, retriever=Own()).invoke(QUESTION)
    with FusionKVRetriever(base_url=base_url, retriever=Own()) as retriever:
        found = await retriever.ainvoke(QUESTION)
        assert found == expected
        known = [KVHandle.from_metadata(document.metadata) is not None for document in found]
        assert known == [True, True, False]


@pytest.mark.asyncio
async def test_a_chain(engine: FusionEngine, base_url: str) -> None:
    def chain(**where: Any) -> Any:
        retriever = FusionKVRetriever(k=3, **where)
        llm = FusionRAGLLM(max_tokens=12, **where)
        inputs = {"context": retriever | join, "question": RunnablePassthrough()}
        return inputs | PromptTemplate.from_template(WORDS) | llm | StrOutputParser()

    expected = chain(engine=engine).invoke(QUESTION)
    remote = chain(base_url=base_url)
    assert await remote.ainvoke(QUESTION) == expected
    assert await asyncio.to_thread(remote.invoke, QUESTION) == expected
    assert "".join([piece async for piece in remote.astream(QUESTION)]) == expected
    answers = await remote.abatch([QUESTION] * 3)
    assert answers == [expected] * 3


def test_a_cache_of_answers_knows_the_stores_state(
    engine: FusionEngine, base_url: str, prompt: str
) -> None:
    llm = FusionRAGLLM(base_url=base_url, max_tokens=3, cache=InMemoryCache())
    local = FusionRAGLLM(engine=engine, max_tokens=3)
    told, wanted = llm.identity(), local.identity()
    assert {**told, "store": ""} == {**wanted, "store": ""}
    assert base_url not in str(told)
    llm.invoke(prompt)
    (again,) = llm.generate([prompt]).generations[0]
    assert again.text == local.invoke(prompt)
