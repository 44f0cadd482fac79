"""LlamaIndex's own indexes and postprocessors over our model: what was ingested is found."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import chromadb
import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter, SentenceWindowNodeParser
from llama_index.core.postprocessor import (
    LongContextReorder,
    MetadataReplacementPostProcessor,
    PrevNextNodePostprocessor,
    SimilarityPostprocessor,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.vector_stores.chroma import ChromaVectorStore

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.llama_index import FusionKVRetriever, FusionKVTransform, FusionRAGLLM
from tests.conftest import all_records, document_ids
from tests.embeddings import LlamaIndexLexical
from tests.llama_index.helpers import (
    MAX_TOKENS,
    QUESTION,
    found_share,
    paragraph,
    recorded,
    town_nodes,
)

NODES = town_nodes(range(4), chunks=3)


class WorstFirst(BaseNodePostprocessor):
    """Stands in for a reranker."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return nodes[::-1]


@pytest.fixture(scope="module")
def ingested(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    store = tmp_path_factory.mktemp("ingested") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store)
    FusionKVRetriever.from_nodes(NODES, engine=engine)
    return engine


def in_memory() -> VectorStoreIndex:
    return VectorStoreIndex(NODES, embed_model=LlamaIndexLexical())


def in_chroma() -> VectorStoreIndex:
    """An index as a process finds it that didn't make it."""
    collection = chromadb.EphemeralClient().get_or_create_collection("towns")
    store = ChromaVectorStore(chroma_collection=collection)
    if not collection.count():
        store.add(list(LlamaIndexLexical()([node.model_copy() for node in NODES])))
    return VectorStoreIndex.from_vector_store(store, embed_model=LlamaIndexLexical())


def asked(engine: FusionEngine, query_engine: Any, question: str = QUESTION) -> tuple[Any, float]:
    """The response, and the share of its sources' tokens that the model found."""
    with recorded(engine) as calls:
        response = query_engine.query(question)
    return response, found_share(engine, calls, [node.text for node in response.source_nodes])


def llm(engine: FusionEngine) -> FusionRAGLLM:
    return FusionRAGLLM(engine=engine, max_tokens=MAX_TOKENS)


@pytest.mark.parametrize("make_index", [in_memory, in_chroma])
def test_an_index_of_ingested_nodes_needs_nothing_but_the_model(
    ingested: FusionEngine, make_index: Callable[[], VectorStoreIndex]
) -> None:
    response, share = asked(ingested, make_index().as_query_engine(llm=llm(ingested)))
    assert len(response.source_nodes) == 2
    assert share >= 0.95


def postprocessors() -> list[BaseNodePostprocessor]:
    docstore = SimpleDocumentStore()
    docstore.add_documents(linked(NODES))
    return [
        SimilarityPostprocessor(similarity_cutoff=0.5),
        WorstFirst(),
        LongContextReorder(),
        PrevNextNodePostprocessor(docstore=docstore, num_nodes=1, mode="both"),
    ]


def linked(nodes: Any) -> Any:
    """The nodes, with the one before and the one behind as relationships."""
    for before, behind in pairwise(nodes):
        before.relationships[NodeRelationship.NEXT] = behind.as_related_node_info()
        behind.relationships[NodeRelationship.PREVIOUS] = before.as_related_node_info()
    return nodes


@pytest.mark.parametrize("postprocessor", postprocessors(), ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "with handles"])
def test_chunks_are_found_behind_a_postprocessor(
    ingested: FusionEngine, postprocessor: BaseNodePostprocessor, wrapped: bool
) -> None:
    retriever = VectorStoreIndex(linked(NODES), embed_model=LlamaIndexLexical()).as_retriever(
        similarity_top_k=5
    )
    before = [node.node_id for node in retriever.retrieve(QUESTION)]
    if wrapped:
        retriever = FusionKVRetriever(engine=ingested, retriever=retriever)  # type: ignore[assignment]
    query_engine = RetrieverQueryEngine.from_args(
        retriever, llm=llm(ingested), node_postprocessors=[postprocessor]
    )
    response, share = asked(ingested, query_engine)
    assert [node.node_id for node in response.source_nodes] != before
    assert response.source_nodes
    assert share >= 0.95


def story(number: int, parts: range) -> Document:
    text = " ".join(paragraph(number, part) for part in parts)
    return Document(id_=f"story-{number}", text=text, metadata={"page": number})


def test_sentences_are_found_in_the_windows_that_replace_them(empty_engine: FusionEngine) -> None:
    stories = [story(number, range(6)) for number in (1, 2)]
    nodes = SentenceWindowNodeParser.from_defaults(window_size=1).get_nodes_from_documents(stories)
    retriever = FusionKVRetriever.from_nodes(nodes, engine=empty_engine, similarity_top_k=2)
    query_engine = RetrieverQueryEngine.from_args(
        retriever,
        llm=llm(empty_engine),
        node_postprocessors=[MetadataReplacementPostProcessor("window")],
    )
    response, share = asked(empty_engine, query_engine)
    assert all(node.text.count("house") == 3 for node in response.source_nodes)
    assert 0.95 <= share <= 1.0


def test_chunks_that_overlap_are_found_whole(empty_engine: FusionEngine) -> None:
    splitter = SentenceSplitter(chunk_size=80, chunk_overlap=40)
    nodes = splitter.get_nodes_from_documents([story(2, range(8))])
    assert paragraph(2, 1) in nodes[0].get_content()
    assert paragraph(2, 1) in nodes[1].get_content()
    retriever = FusionKVRetriever.from_nodes(nodes, engine=empty_engine, similarity_top_k=4)
    _, share = asked(empty_engine, RetrieverQueryEngine.from_args(retriever, llm=llm(empty_engine)))
    assert 0.95 <= share <= 1.0


def own_index(engine: FusionEngine) -> VectorStoreIndex:
    """An index whose documents are ingested on their way in."""
    return VectorStoreIndex.from_documents(
        [story(1, range(4)), story(2, range(4))],
        embed_model=LlamaIndexLexical(),
        transformations=[
            SentenceSplitter(chunk_size=80, chunk_overlap=0),
            FusionKVTransform(engine=engine),
        ],
    )


def test_documents_that_an_index_takes_in_later_are_ingested(empty_engine: FusionEngine) -> None:
    index = own_index(empty_engine)
    index.insert(story(3, range(4)))
    assert document_ids(empty_engine.store.catalog) == ["story-1", "story-2", "story-3"]
    response, share = asked(empty_engine, index.as_query_engine(llm=llm(empty_engine)), "house 22")
    assert response.source_nodes[0].node.ref_doc_id == "story-3"
    assert share >= 0.95


def test_a_document_that_an_index_refreshes_is_replaced(empty_engine: FusionEngine) -> None:
    index = own_index(empty_engine)
    new = story(2, range(10, 14))
    assert index.refresh_ref_docs([story(1, range(4)), new]) == [False, True]
    texts = [r.chunk.text for r in all_records(empty_engine.store.catalog)]
    assert paragraph(2, 10) in " ".join(texts)
    assert paragraph(2, 0) not in " ".join(texts)
    _, share = asked(empty_engine, index.as_query_engine(llm=llm(empty_engine)), "house 24")
    assert share >= 0.95


def test_nodes_that_are_inserted_as_nodes_are_not_ingested_but_answered_from(
    empty_engine: FusionEngine,
) -> None:
    """`insert_nodes` runs no transformations."""
    index = own_index(empty_engine)
    nodes = town_nodes(range(7, 8))
    index.insert_nodes(nodes)
    query_engine = index.as_query_engine(llm=llm(empty_engine))
    response, share = asked(empty_engine, query_engine, "Where is house 49 or house 50?")
    assert [node.node.ref_doc_id for node in response.source_nodes] == ["town-7", "town-7"]
    assert share == 0.0
    FusionKVTransform(engine=empty_engine)(nodes)
    assert asked(empty_engine, query_engine, "Where is house 49 or house 50?")[1] >= 0.95
