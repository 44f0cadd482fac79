"""LlamaIndex's nodes: ingested as they are, given back as they were, marked with their handles."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.schema import (
    Document,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from fusionrag_integrations import FusionEngine, IngestReport, KVHandle
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionRAGLLM
from tests.conftest import document_ids
from tests.llama_index.helpers import (
    MAX_TOKENS,
    QUESTION,
    FixedRetriever,
    paragraph,
    recorded,
    town_nodes,
)

PAGES = [1, 2, 3, 4]


def page(number: int, **more: Any) -> TextNode:
    return TextNode(
        text=paragraph(number, 0),
        metadata={"file": f"{number % 2}.txt", "page": number, "title": f"Town {number}"},
        **more,
    )


def of_source(name: str) -> dict[NodeRelationship, RelatedNodeInfo]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=name)}


@pytest.fixture
def pages(empty_engine: FusionEngine) -> FusionEngine:
    """Four pages, each its own document."""
    FusionKVRetriever.from_nodes([page(number) for number in PAGES], engine=empty_engine)
    return empty_engine


def found_pages(engine: FusionEngine, filters: MetadataFilters | None) -> list[int]:
    retriever = FusionKVRetriever(engine=engine, similarity_top_k=9, filters=filters)
    return sorted(node.metadata["page"] for node in retriever.retrieve("town"))


def one(key: str, operator: str, value: Any) -> MetadataFilter:
    return MetadataFilter(key=key, operator=FilterOperator(operator), value=value)


def both(condition: str, *filters: Any) -> MetadataFilters:
    return MetadataFilters(filters=list(filters), condition=FilterCondition(condition))


def test_nodes_of_one_source_are_one_document_in_their_order(empty_engine: FusionEngine) -> None:
    first, second = town_nodes(range(2), chunks=3)[:3], town_nodes(range(2), chunks=3)[3:]
    mixed = [node for pair in zip(first, second, strict=True) for node in pair]
    retriever = FusionKVRetriever.from_nodes(mixed, engine=empty_engine, similarity_top_k=6)
    assert document_ids(empty_engine.store.catalog) == ["town-0", "town-1"]
    found = retriever.retrieve(QUESTION)
    assert [node.metadata["index"] for node in found] == [0, 1, 2] * 2
    texts = {node.node.ref_doc_id: [] for node in found}  # type: ignore[var-annotated]
    for node in found:
        texts[node.node.ref_doc_id].append(node.text)
    assert texts == {
        "town-0": [node.get_content() for node in first],
        "town-1": [node.get_content() for node in second],
    }


def test_a_node_without_a_source_is_a_document_of_its_own(empty_engine: FusionEngine) -> None:
    FusionKVRetriever.from_nodes([page(1, id_="alone"), page(2, id_="too")], engine=empty_engine)
    assert document_ids(empty_engine.store.catalog) == ["alone", "too"]


def test_documents_are_nodes_too(empty_engine: FusionEngine) -> None:
    document = Document(id_="whole", text=paragraph(1, 0))
    [node] = FusionKVRetriever.from_nodes([document], engine=empty_engine).retrieve(QUESTION)
    assert (node.text, node.node.ref_doc_id) == (document.text, "whole")


def test_prompts_see_of_a_node_what_they_would_have_seen(empty_engine: FusionEngine) -> None:
    node = page(1, excluded_llm_metadata_keys=["file"], relationships=of_source("book"))
    [found] = FusionKVRetriever.from_nodes([node], engine=empty_engine).retrieve(QUESTION)
    assert found.get_content(MetadataMode.LLM) == node.get_content(MetadataMode.LLM)
    assert "file" not in found.get_content(MetadataMode.LLM)
    assert found.metadata.items() >= node.metadata.items()
    assert found.metadata["document_id"] == found.node.ref_doc_id == "book"
    assert not any(key == "fusionrag_hidden" for key in found.metadata)


def test_ingesting_nodes_again_costs_nothing_and_replaces_their_sources(
    empty_engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[IngestReport] = []
    ingest = empty_engine.ingest
    monkeypatch.setattr(
        empty_engine, "ingest", lambda *a, **k: reports.append(ingest(*a, **k)) or reports[-1]
    )
    for nodes in (town_nodes(), town_nodes(), town_nodes(range(1), chunks=1)):
        FusionKVRetriever.from_nodes(nodes, engine=empty_engine)
    assert [r.documents_unchanged for r in reports] == [0, 3, 0]
    assert [r.documents_changed for r in reports] == [0, 0, 1]
    assert [r.isolated_computed for r in reports] == [6, 0, 0]
    assert [r.chunks for r in reports] == [6, 6, 5]


def test_from_nodes_searches_the_scope_that_it_filled(empty_engine: FusionEngine) -> None:
    FusionKVRetriever.from_nodes([page(1)], engine=empty_engine, scope="south")
    north = FusionKVRetriever.from_nodes([page(2)], engine=empty_engine, scope="north")
    assert [node.metadata["page"] for node in north.retrieve(QUESTION)] == [2]


@pytest.mark.parametrize(("scopes", "found"), [(["north"], True), (["south"], False)])
def test_the_model_finds_the_chunks_of_its_own_scopes_only(
    empty_engine: FusionEngine, scopes: list[str], found: bool
) -> None:
    nodes = FusionKVRetriever.from_nodes([page(1)], engine=empty_engine, scope="north")
    prompt = nodes.retrieve(QUESTION)[0].text
    llm = FusionRAGLLM(engine=empty_engine, scopes=scopes, max_tokens=MAX_TOKENS)
    with recorded(empty_engine) as calls:
        llm.complete(prompt)
    assert (calls[0].found_tokens > 0) is found


@pytest.mark.parametrize("nodes", [[Node()], [page(1), Node()]])
def test_nodes_other_than_text_are_refused(empty_engine: FusionEngine, nodes: list[Any]) -> None:
    with pytest.raises(InvalidInputError, match="A Node without text can't be ingested"):
        FusionKVRetriever.from_nodes(nodes, engine=empty_engine)


@pytest.mark.parametrize("way", ["retrieve", "aretrieve"])
@pytest.mark.asyncio
async def test_another_retrievers_nodes_get_handles_and_stay_as_they_are(
    empty_engine: FusionEngine, way: str
) -> None:
    known, other_scope, unknown = page(3), page(2), page(1)
    FusionKVRetriever.from_nodes([known], engine=empty_engine, scope="north")
    FusionKVRetriever.from_nodes([other_scope], engine=empty_engine, scope="south")
    given = [
        NodeWithScore(node=node.model_copy(deep=True), score=score)
        for node, score in ((unknown, 0.1), (known, 0.9), (other_scope, None))
    ]
    retriever = FusionKVRetriever(
        engine=empty_engine, retriever=FixedRetriever(given), scopes=["north"]
    )
    found = retriever.retrieve("?") if way == "retrieve" else await retriever.aretrieve("?")
    assert [node.score for node in found] == [0.1, 0.9, None]
    assert [node.node for node in found[::2]] == [unknown, other_scope]
    handle = KVHandle.from_metadata(found[1].metadata)
    assert handle is not None
    assert empty_engine.store.catalog.chunks.record(handle.chunk_id).chunk.text == known.text  # type: ignore[union-attr]
    assert found[1].metadata.items() >= known.metadata.items()
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert found[1].get_content(mode) == known.get_content(mode)
    assert given[1].node == known  # the index's own node is not changed


@pytest.mark.parametrize(
    ("operator", "value", "pages_found"),
    [
        ("==", 2, [2]),
        ("!=", 2, [1, 3, 4]),
        (">", 2, [3, 4]),
        (">=", 2, [2, 3, 4]),
        ("<", 2, [1]),
        ("<=", 2, [1, 2]),
        ("in", [1, 4], [1, 4]),
        ("nin", [1, 4], [2, 3]),
    ],
)
def test_every_operator_filters(
    pages: FusionEngine, operator: str, value: Any, pages_found: list[int]
) -> None:
    assert found_pages(pages, both("and", one("page", operator, value))) == pages_found


@pytest.mark.parametrize(
    ("filters", "pages_found"),
    [
        (both("and"), PAGES),
        (both("and", both("or")), PAGES),
        (both("and", one("page", ">", 1), one("file", "==", "1.txt")), [3]),
        (both("or", one("page", "<", 2), one("page", ">", 3)), [1, 4]),
        (
            both(
                "and",
                one("file", "==", "0.txt"),
                both("or", one("page", "==", 1), one("page", "==", 2)),
            ),
            [2],
        ),
        (
            both(
                "or",
                one("page", "==", 1),
                both("and", one("page", ">", 2), one("file", "==", "0.txt")),
            ),
            [1, 4],
        ),
        (both("and", one("title", "==", "Town 2")), [2]),
    ],
)
def test_filters_nest(
    pages: FusionEngine, filters: MetadataFilters, pages_found: list[int]
) -> None:
    assert found_pages(pages, filters) == pages_found


SUPPORTED = {"==", "!=", ">", ">=", "<", "<=", "in", "nin"}


@pytest.mark.parametrize(
    "operator", sorted({operator.value for operator in FilterOperator} - SUPPORTED)
)
def test_other_operators_are_refused_at_once(pages: FusionEngine, operator: str) -> None:
    filters = both("and", one("page", ">", 1), both("or", one("file", operator, "x")))
    with pytest.raises(InvalidInputError, match=f"operator '{operator}' is not supported; use =="):
        FusionKVRetriever(engine=pages, filters=filters)


def test_negation_is_refused_at_once(pages: FusionEngine) -> None:
    with pytest.raises(InvalidInputError, match="not supported; use and, or"):
        FusionKVRetriever(engine=pages, filters=both("not", one("page", "==", 1)))
