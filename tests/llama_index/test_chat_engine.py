"""Chat engines over two turns, in every way: the chunks are found wherever they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import CitationQueryEngine

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionRAGLLM
from tests.embeddings import LlamaIndexLexical
from tests.llama_index.helpers import (
    MAX_TOKENS,
    Call,
    found_share,
    recorded,
    ticking_at_every_step,
    town_nodes,
)

QUESTIONS = ("Where is house 15?", "And where is house 8?")
WAYS = ("chat", "stream_chat", "achat", "astream_chat")
# For each mode, which calls of two turns hold chunks; the others word a question of its own.
CALLS_WITH_CHUNKS = {
    "context": (True, True),
    "condense_plus_context": (True, False, True),
    "condense_question": (True, False, True),
    "best": (True, False, True),
}


@pytest.fixture(scope="module")
def chatting(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    store = tmp_path_factory.mktemp("chatting") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    FusionKVRetriever.from_nodes(town_nodes(), engine=engine)
    return engine


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    return VectorStoreIndex(town_nodes(), embed_model=LlamaIndexLexical())


def llm(engine: FusionEngine) -> FusionRAGLLM:
    return FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS)


def chat(engine: FusionEngine, index: VectorStoreIndex, mode: str, **arguments: Any) -> Any:
    """A chat engine as `index` makes it; its history is counted by the model's tokens."""
    return index.as_chat_engine(
        chat_mode=mode,  # type: ignore[arg-type]
        llm=llm(engine),
        memory=ChatMemoryBuffer.from_defaults(token_limit=1000, tokenizer_fn=engine.encode),
        similarity_top_k=3,
        **arguments,
    )


async def turn(chat_engine: Any, way: str, question: str) -> str:
    method = getattr(chat_engine, way)
    if way == "chat":
        return str(method(question))
    if way == "achat":
        return str(await method(question))
    if way == "stream_chat":
        return "".join(method(question).response_gen)
    response = await method(question)
    return "".join([piece async for piece in response.async_response_gen()])


def with_chunks(calls: list[Call]) -> tuple[bool, ...]:
    return tuple(call.found_tokens > 0 for call in calls)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", CALLS_WITH_CHUNKS)
@pytest.mark.asyncio
async def test_two_turns_find_the_chunks_of_both(
    chatting: FusionEngine, index: VectorStoreIndex, mode: str, way: str
) -> None:
    chat_engine = chat(chatting, index, mode)
    answers = []
    with recorded(chatting) as calls:
        for question in QUESTIONS:
            answers.append(await turn(chat_engine, way, question))
    assert with_chunks(calls) == CALLS_WITH_CHUNKS[mode]
    for call in calls:
        texts = [node.text for node in town_nodes() if node.text in call.text]  # type: ignore[attr-defined]
        assert len(texts) == (3 if call.found_tokens else 0)
        assert not texts or found_share(chatting, [call], texts) >= 0.95
    assert [calls[0].answer.text, calls[-1].answer.text] == answers
    history = [message.content.strip() for message in chat_engine.chat_history]
    said = [QUESTIONS[0], answers[0], QUESTIONS[1], answers[1]]
    assert history == [text.strip() for text in said]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.asyncio
async def test_every_way_of_chatting_gives_the_same_answers(
    chatting: FusionEngine, index: VectorStoreIndex, way: str
) -> None:
    chats = [chat(chatting, index, "context") for _ in range(2)]
    for question in QUESTIONS:
        expected = await turn(chats[0], "chat", question)
        assert await turn(chats[1], way, question) == expected


def test_chunks_stand_in_the_system_message_of_a_context_chat(
    chatting: FusionEngine, index: VectorStoreIndex
) -> None:
    chat_engine = chat(chatting, index, "context", system_prompt="Answer in rhymes.")
    with recorded(chatting) as calls:
        response = chat_engine.chat(QUESTIONS[0])
    system, user = calls[0].prompt
    assert (system["role"], user) == ("system", {"role": "user", "content": QUESTIONS[0]})
    assert "Answer in rhymes." in system["content"]
    texts = [node.text for node in response.source_nodes]
    assert all(text in system["content"] for text in texts)
    assert found_share(chatting, calls, texts) >= 0.95


@pytest.mark.parametrize("way", ["achat", "astream_chat"])
@pytest.mark.asyncio
async def test_the_event_loop_goes_on_while_a_chat_engine_answers(
    chatting: FusionEngine, index: VectorStoreIndex, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    chat_engine = chat(chatting, index, "context")
    with ticking_at_every_step(chatting, monkeypatch) as steps:
        await turn(chat_engine, way, QUESTIONS[0])
    assert len(steps) > 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.asyncio
async def test_a_simple_chat_engine_remembers_what_was_said(
    chatting: FusionEngine, way: str
) -> None:
    chat_engine = SimpleChatEngine.from_defaults(
        llm=llm(chatting), system_prompt="Be brief.", memory=ChatMemoryBuffer(token_limit=1000)
    )
    with recorded(chatting) as calls:
        first, _ = [await turn(chat_engine, way, question) for question in QUESTIONS]
    roles, said = zip(*((m["role"], m["content"].strip()) for m in calls[1].prompt), strict=True)
    assert roles == ("system", "user", "assistant", "user")
    assert said == ("Be brief.", QUESTIONS[0], first.strip(), QUESTIONS[1])


def cited(
    engine: FusionEngine, index: VectorStoreIndex, **arguments: Any
) -> tuple[Any, list[Call]]:
    query_engine = CitationQueryEngine.from_args(
        index, llm=llm(engine), similarity_top_k=3, **arguments
    )
    with recorded(engine) as calls:
        return query_engine.query(QUESTIONS[0]), calls


def test_sources_with_numbers_are_found(chatting: FusionEngine, index: VectorStoreIndex) -> None:
    response, calls = cited(chatting, index)
    texts = [node.text for node in response.source_nodes]
    assert [text.partition("\n")[0] for text in texts] == ["Source 1:", "Source 2:", "Source 3:"]
    assert all(text.strip() in calls[0].text for text in texts)
    bare = [text.partition("\n")[2].strip() for text in texts]
    assert found_share(chatting, calls, bare) >= 0.95


def test_of_a_source_that_is_split_for_citations_the_first_part_is_found(
    chatting: FusionEngine, index: VectorStoreIndex
) -> None:
    """The parts that follow begin in the middle of a chunk."""
    response, calls = cited(chatting, index, citation_chunk_size=30, citation_chunk_overlap=0)
    parts = [node.text.partition("\n")[2].strip() for node in response.source_nodes]
    assert len(parts) == 6
    chunks = [f"{first} {second}" for first, second in zip(parts[::2], parts[1::2], strict=True)]
    assert {node.text for node in town_nodes()}.issuperset(chunks)  # type: ignore[attr-defined]
    assert found_share(chatting, calls, parts[::2]) == pytest.approx(1.0, abs=0.06)
