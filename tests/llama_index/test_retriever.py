"""FusionKVRetriever: what its nodes hold, how many come, in what order, and its errors."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import MetadataMode, NodeWithScore
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from fusionrag_integrations import FusionEngine, KVHandle, Store
from fusionrag_integrations.errors import InvalidInputError, StoreNotFoundError
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.llama_index import FusionKVRetriever
from tests.llama_index.helpers import FixedRetriever

QUESTION = "Where is house 15 of town number 2?"


@pytest.fixture
def nodes(engine: FusionEngine) -> list[NodeWithScore]:
    return FusionKVRetriever(engine=engine, similarity_top_k=5).retrieve(QUESTION)


def test_nodes_are_chunks_by_id_and_text(engine: FusionEngine, nodes: list[NodeWithScore]) -> None:
    records = engine.store.catalog.chunks.records([node.node_id for node in nodes])
    assert len(records) == 5
    assert [node.text for node in nodes] == [r.chunk.text for r in records.values()]


def test_scores_are_the_searchs(engine: FusionEngine, nodes: list[NodeWithScore]) -> None:
    hits = engine.store.search(QUESTION, 5)
    assert {node.node_id: node.score for node in nodes} == {h.chunk.id: h.score for h in hits}


def test_a_node_is_the_same_whatever_was_asked(engine: FusionEngine) -> None:
    """Its score isn't part of it; LlamaIndex tells nodes apart by their hashes."""
    retriever = FusionKVRetriever(engine=engine, similarity_top_k=6)
    found = [one.node for query in (QUESTION, "the lazy dog") for one in retriever.retrieve(query)]
    by_id = {node.node_id: node for node in found}
    assert len(by_id) < len(found)
    assert all(
        (node, node.hash) == (by_id[node.node_id], by_id[node.node_id].hash) for node in found
    )


def test_metadata_carries_the_handle(engine: FusionEngine, nodes: list[NodeWithScore]) -> None:
    for node in nodes:
        handle = KVHandle.from_metadata(node.metadata)
        assert handle == engine.store.catalog.chunks.record(node.node_id).handle
        assert handle.fused_key


def test_metadata_holds_strings_and_numbers_only(nodes: list[NodeWithScore]) -> None:
    values = [value for node in nodes for value in node.metadata.values()]
    assert {type(value) for value in values} == {str, int}


def test_metadata_names_the_chunk_and_keeps_the_users_own(engine: FusionEngine) -> None:
    [node] = FusionKVRetriever(engine=engine, similarity_top_k=1).retrieve(
        "house 22 of town number 3"
    )
    named = {name: node.metadata[name] for name in ("document_id", "title", "index", "page")}
    assert named == {"document_id": "town-3", "title": "Town 3", "index": 1, "page": 7}


@pytest.mark.parametrize("mode", [MetadataMode.LLM, MetadataMode.EMBED])
def test_prompts_and_embeddings_see_the_text_alone(
    engine: FusionEngine, mode: MetadataMode
) -> None:
    nodes = FusionKVRetriever(engine=engine, scopes=[""]).retrieve(QUESTION)
    assert [node.get_content(mode) for node in nodes] == [node.text for node in nodes]


def test_prompts_see_the_users_own_metadata(engine: FusionEngine) -> None:
    """As for any node; users exclude what they don't want there."""
    [node] = FusionKVRetriever(engine=engine, similarity_top_k=1, scopes=["north"]).retrieve(
        QUESTION
    )
    assert node.get_content(MetadataMode.LLM) == f"page: 7\n\n{node.text}"


def test_the_best_document_comes_first_and_its_chunks_in_order(engine: FusionEngine) -> None:
    found = FusionKVRetriever(engine=engine, similarity_top_k=12).retrieve(QUESTION)
    best = engine.store.search(QUESTION, 1)[0].chunk.document_id
    places = [(node.metadata["document_id"], node.metadata["index"]) for node in found]
    assert [name for name, _ in places[::3]] == list(dict.fromkeys(name for name, _ in places))
    assert places[0][0] == best
    assert [index for _, index in places] == [0, 1, 2] * 4


def test_scope_limits_the_search(engine: FusionEngine) -> None:
    retriever = FusionKVRetriever(engine=engine, scopes=["north"], similarity_top_k=12)
    found = retriever.retrieve(QUESTION)
    assert [node.metadata["document_id"] for node in found] == ["town-3"] * 3


@pytest.mark.asyncio
async def test_the_asynchronous_call_finds_the_same(
    engine: FusionEngine, nodes: list[NodeWithScore]
) -> None:
    assert await FusionKVRetriever(engine=engine).aretrieve(QUESTION) == nodes


@pytest.mark.asyncio
async def test_the_asynchronous_call_leaves_the_event_loop_free(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop_ran = threading.Event()
    search = engine.store.search

    def wait_and_search(*args: Any, **kwargs: Any) -> Any:
        assert loop_ran.wait(timeout=10)
        return search(*args, **kwargs)

    monkeypatch.setattr(engine.store, "search", wait_and_search)
    task = asyncio.create_task(FusionKVRetriever(engine=engine).aretrieve(QUESTION))
    await asyncio.sleep(0.01)
    loop_ran.set()
    assert len(await task) == 5


def test_a_store_opens_without_a_model(
    engine: FusionEngine, nodes: list[NodeWithScore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(PlainModel, "load")
    monkeypatch.delattr(PlainModel, "__init__")
    retriever = FusionKVRetriever.from_store(engine.store.path, similarity_top_k=5)
    assert retriever.retrieve(QUESTION) == nodes


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        FusionKVRetriever.from_store(tmp_path / "none")


@pytest.mark.parametrize("names", [(), ("engine", "store")])
def test_exactly_one_of_engine_and_corpus(engine: FusionEngine, names: tuple[str, ...]) -> None:
    given: dict[str, Any] = {"engine": engine, "store": Store.open(engine.store.path)}
    with pytest.raises(InvalidInputError, match="either an engine, a store or a server"):
        FusionKVRetriever(**{name: given[name] for name in names})


FILTER = MetadataFilters(filters=[MetadataFilter(key="page", value=7)])


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ({"similarity_top_k": 0}, "similarity_top_k is 0"),
        ({"similarity_top_k": "5"}, "similarity_top_k is '5'"),
        ({"scopes": "north"}, "scopes is 'north'; give a list"),
        ({"scopes": [7]}, r"scopes is \[7\]"),
        ({"filters": {"page": 7}}, "give a MetadataFilters"),
        ({"retriever": "index"}, "retriever is 'index'; give a BaseRetriever"),
        ({"retriever": FixedRetriever([]), "filters": FILTER}, "don't reach another retriever"),
    ],
)
def test_what_can_never_work_is_refused_when_the_retriever_is_made(
    engine: FusionEngine, argument: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        FusionKVRetriever(engine=engine, **argument)


def test_an_empty_store_gives_no_nodes_and_a_warning(
    empty_engine: FusionEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert FusionKVRetriever(engine=empty_engine).retrieve(QUESTION) == []
    assert "holds no chunks" in caplog.text


def test_an_empty_question_is_refused(engine: FusionEngine) -> None:
    with pytest.raises(InvalidInputError, match="question is empty"):
        FusionKVRetriever(engine=engine).retrieve("  \n")


def test_a_store_may_be_given_by_its_old_name_for_now(engine: FusionEngine) -> None:
    expected = FusionKVRetriever(store=engine.store).retrieve(QUESTION)
    with pytest.warns(DeprecationWarning, match="corpus is called store now") as warned:
        retriever = FusionKVRetriever(corpus=engine.store)
    assert warned[0].filename == __file__
    assert retriever.retrieve(QUESTION) == expected
    with pytest.raises(InvalidInputError, match="either an engine, a store or a server"):
        FusionKVRetriever(engine=engine, corpus=engine.store)
