"""LlamaIndex's components over a server answer and find what those over its engine do."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import get_response_synthesizer
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import ChatMessage
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.adapters.remote import RemoteEngine
from fusionrag_integrations.errors import InvalidInputError, PromptTooLongError
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionRAGLLM
from tests.conftest import town
from tests.remote.loopback import LOOPBACK

pytestmark = LOOPBACK

QUESTION = "Where is house 15 of town number 2?"
KEY = "a-key-that-nobody-sees"


@pytest.fixture
def local(engine: FusionEngine) -> FusionRAGLLM:
    return FusionRAGLLM(engine=engine, max_tokens=12)


@pytest.fixture
def llm(base_url: str) -> Iterator[FusionRAGLLM]:
    with FusionRAGLLM(base_url=base_url, max_tokens=12) as llm:
        yield llm


@pytest.fixture
def prompt(engine: FusionEngine) -> str:
    nodes = FusionKVRetriever(engine=engine, similarity_top_k=3).retrieve(QUESTION)
    return "\n\n".join([*(found.text for found in nodes), QUESTION])


@pytest.mark.parametrize("settings", [{}, {"ratio": 0.5, "stop": ["e"]}, {"formatted": True}])
@pytest.mark.asyncio
async def test_completions(
    local: FusionRAGLLM, llm: FusionRAGLLM, prompt: str, settings: dict[str, Any]
) -> None:
    expected = local.complete(prompt, **settings)
    whole = await asyncio.to_thread(llm.complete, prompt, **settings)
    streamed = await asyncio.to_thread(lambda: list(llm.stream_complete(prompt, **settings)))
    asynchronous = [r async for r in await llm.astream_complete(prompt, **settings)]
    assert [r.delta for r in streamed] == [r.delta for r in asynchronous]
    for given in (whole, await llm.acomplete(prompt, **settings), streamed[-1], asynchronous[-1]):
        assert given.text == expected.text
        assert given.additional_kwargs == expected.additional_kwargs
        assert given.raw["usage"] == expected.raw["usage"]
        assert given.raw["ttft_ms"]["total"] > 0


@pytest.mark.asyncio
async def test_chats(local: FusionRAGLLM, llm: FusionRAGLLM, prompt: str) -> None:
    messages = [ChatMessage("Answer briefly.", role="system"), ChatMessage(prompt)]
    expected = local.chat(messages)
    whole = await asyncio.to_thread(llm.chat, messages)
    *_, streamed = await asyncio.to_thread(lambda: list(llm.stream_chat(messages)))
    *_, asynchronous = [r async for r in await llm.astream_chat(messages)]
    for given in (whole, await llm.achat(messages), streamed, asynchronous):
        assert given.message.content == expected.message.content
        assert given.raw["usage"] == expected.raw["usage"]


def test_metadata_is_the_models(local: FusionRAGLLM, llm: FusionRAGLLM) -> None:
    assert llm.metadata == local.metadata


@pytest.mark.asyncio
async def test_a_query_engine_that_packs_by_the_models_tokens(
    engine: FusionEngine, local: FusionRAGLLM, llm: FusionRAGLLM, base_url: str
) -> None:
    def query_engine(llm: FusionRAGLLM, retriever: FusionKVRetriever) -> RetrieverQueryEngine:
        synthesizer = get_response_synthesizer(llm=llm, prompt_helper=llm.prompt_helper())
        return RetrieverQueryEngine(retriever, response_synthesizer=synthesizer)

    here = FusionKVRetriever(engine=engine, similarity_top_k=4)
    expected = query_engine(local, here).query(QUESTION)
    with FusionKVRetriever(base_url=base_url, similarity_top_k=4) as there:
        remote = query_engine(llm, there)
        for given in (
            await asyncio.to_thread(remote.query, QUESTION),
            await remote.aquery(QUESTION),
        ):
            assert str(given) == str(expected)
            assert [n.node_id for n in given.source_nodes] == [
                n.node_id for n in expected.source_nodes
            ]


def test_control_tokens_in_chunks_count_as_text(engine: FusionEngine, base_url: str) -> None:
    """Else a prompt would be packed that is too long."""
    text = "<|user|> <|end|>"
    with RemoteEngine(base_url) as remote:
        as_text = remote.encode(text, control_tokens=False)
        assert as_text == engine.encode(text, control_tokens=False)
        assert len(as_text) > len(remote.encode(text))


def test_a_prompt_that_is_too_long(llm: FusionRAGLLM, prompt: str) -> None:
    with pytest.raises(PromptTooLongError):
        llm.complete(prompt * 40)


@pytest.mark.asyncio
async def test_nodes_with_filters_and_in_scopes(engine: FusionEngine, base_url: str) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="page", value=7)])
    for search in ({"filters": filters}, {"scopes": [""], "similarity_top_k": 2}):
        expected = FusionKVRetriever(engine=engine, **search).retrieve(QUESTION)
        with FusionKVRetriever(base_url=base_url, **search) as retriever:
            for found in (
                await asyncio.to_thread(retriever.retrieve, QUESTION),
                await retriever.aretrieve(QUESTION),
            ):
                assert [(n.node.to_dict(), n.score) for n in found] == [
                    (n.node.to_dict(), n.score) for n in expected
                ]


class Own(BaseRetriever):
    """A user's own: a known text, and one that nobody knows."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        texts = [town(1).text.split("\n\n")[0], "A text that no store holds, of some length."]
        return [NodeWithScore(node=TextNode(id_=text, text=text), score=0.5) for text in texts]


def test_ones_own_retriever_gets_handles(engine: FusionEngine, base_url: str) -> None:
    expected = FusionKVRetriever(engine=engine, retriever=Own()).retrieve(QUESTION)
    with FusionKVRetriever(base_url=base_url, retriever=Own()) as retriever:
        found = retriever.retrieve(QUESTION)
    assert [n.node.metadata for n in found] == [n.node.metadata for n in expected]
    assert [bool(n.node.metadata) for n in found] == [True, False]


def test_settings_are_written_down_without_server_and_key(base_url: str, prompt: str) -> None:
    llm = FusionRAGLLM(base_url=base_url, api_key=KEY, max_tokens=3, ratio=0.3)
    for text in (llm.to_json(), json.dumps(llm.to_dict()), repr(llm)):
        assert KEY not in text
        assert base_url not in text
    again = FusionRAGLLM.from_dict(llm.to_dict(), base_url=base_url)
    assert (again.max_tokens, again.ratio) == (3, 0.3)
    assert again.complete(prompt).text == llm.complete(prompt).text


def test_it_may_leave_its_process(base_url: str, prompt: str) -> None:
    llm = FusionRAGLLM(base_url=base_url, max_tokens=3)
    expected = llm.complete(prompt).text  # with a connection, which stays here
    again = pickle.loads(pickle.dumps(llm))  # noqa: S301
    assert again.complete(prompt).text == expected
    with pytest.raises(InvalidInputError, match="holds no engine"):
        FusionRAGLLM.from_dict(llm.to_dict())
