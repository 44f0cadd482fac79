"""FusionKVRetriever: what its documents hold, how many come, in what order, and its errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers import EnsembleRetriever, MultiQueryRetriever
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig, RunnableLambda

from fusionrag_integrations import FusionEngine, KVHandle, Store
from fusionrag_integrations.errors import InvalidInputError, StoreNotFoundError
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.langchain import FusionKVRetriever

QUESTION = "Where is house 15 of town number 2?"


@pytest.fixture
def documents(engine: FusionEngine) -> list[Document]:
    return FusionKVRetriever(engine=engine, k=5).invoke(QUESTION)


def test_documents_are_chunks_by_id_and_text(
    engine: FusionEngine, documents: list[Document]
) -> None:
    records = engine.store.catalog.chunks.records([document.id for document in documents])
    assert len(records) == 5
    assert [d.page_content for d in documents] == [r.chunk.text for r in records.values()]


def test_metadata_holds_strings_and_numbers_only(documents: list[Document]) -> None:
    values = [value for document in documents for value in document.metadata.values()]
    assert {type(value) for value in values} == {str, int}


def test_metadata_names_the_chunk_and_keeps_the_users_own(engine: FusionEngine) -> None:
    [document] = FusionKVRetriever(engine=engine, k=1).invoke("house 22 of town number 3")
    named = {name: document.metadata[name] for name in ("document_id", "title", "index", "page")}
    assert named == {"document_id": "town-3", "title": "Town 3", "index": 1, "page": 7}


def test_metadata_carries_the_handle(engine: FusionEngine, documents: list[Document]) -> None:
    for document in documents:
        handle = KVHandle.from_metadata(document.metadata)
        assert handle == engine.store.catalog.chunks.record(document.id).handle
        assert handle.fused_key


def test_scores_are_the_searchs(engine: FusionEngine, documents: list[Document]) -> None:
    hits = engine.store.search(QUESTION, 5)
    found = FusionKVRetriever(engine=engine, k=5).similarity_search_with_score(QUESTION)
    assert [document for document, _ in found] == documents
    assert {d.id: score for d, score in found} == {h.chunk.id: h.score for h in hits}
    retriever = FusionKVRetriever(engine=engine, k=5)
    assert len(retriever.similarity_search_with_score(QUESTION, k=2)) == 2
    around = FusionKVRetriever(engine=engine, retriever=retriever)
    with pytest.raises(InvalidInputError, match="own has no scores"):
        around.similarity_search_with_score(QUESTION)


QUERIES = ["Which house is by the bridge?", "house 7 of town number 1", "the lazy dog", QUESTION]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("fields", [{}, {"search_type": "mmr"}, {"score_threshold": 0.01}])
def test_a_document_is_the_same_whatever_was_asked(
    engine: FusionEngine, fields: dict[str, Any], wrapped: bool
) -> None:
    retriever = FusionKVRetriever(engine=engine, k=6, **fields)
    if wrapped:
        retriever = FusionKVRetriever(engine=engine, retriever=retriever)
    found = [document for query in QUERIES for document in retriever.invoke(query)]
    by_id = {document.id: document for document in found}
    assert len(by_id) < len(found)
    assert all(document == by_id[document.id] for document in found)


@pytest.mark.asyncio
async def test_several_queries_find_each_document_once(engine: FusionEngine) -> None:
    """LangChain's own retrievers drop documents that are equal to one before."""
    retriever = FusionKVRetriever(engine=engine, k=6)
    several = MultiQueryRetriever(retriever=retriever, llm_chain=RunnableLambda(lambda _: QUERIES))
    for found in (several.invoke(QUESTION), await several.ainvoke(QUESTION)):
        assert len(found) == len({document.id for document in found}) > 6
    wrapped = FusionKVRetriever(engine=engine, retriever=retriever)
    both = EnsembleRetriever(retrievers=[retriever, wrapped], weights=[0.5, 0.5])
    assert sorted(d.id for d in both.invoke(QUESTION)) == sorted(
        d.id for d in retriever.invoke(QUESTION)
    )


def test_the_best_document_comes_first_and_its_chunks_in_order(engine: FusionEngine) -> None:
    found = FusionKVRetriever(engine=engine, k=12).invoke(QUESTION)
    best = engine.store.search(QUESTION, 1)[0].chunk.document_id
    places = [(d.metadata["document_id"], d.metadata["index"]) for d in found]
    assert [name for name, _ in places[::3]] == list(dict.fromkeys(name for name, _ in places))
    assert places[0][0] == best
    assert [index for _, index in places] == [0, 1, 2] * 4


def test_k_as_a_field_and_per_call(engine: FusionEngine) -> None:
    retriever = FusionKVRetriever(engine=engine, k=2)
    assert len(retriever.invoke(QUESTION)) == 2
    assert len(retriever.invoke(QUESTION, k=4)) == 4


def test_scope_limits_the_search(engine: FusionEngine) -> None:
    found = FusionKVRetriever(engine=engine, scopes=["north"], k=12).invoke(QUESTION)
    assert [document.metadata["document_id"] for document in found] == ["town-3"] * 3


@pytest.mark.asyncio
async def test_the_asynchronous_call_finds_the_same(
    engine: FusionEngine, documents: list[Document]
) -> None:
    assert await FusionKVRetriever(engine=engine, k=5).ainvoke(QUESTION) == documents


def test_a_store_opens_without_a_model(
    engine: FusionEngine, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(PlainModel, "load")
    monkeypatch.delattr(PlainModel, "__init__")
    retriever = FusionKVRetriever.from_store(engine.store.path, k=5)
    assert retriever.engine is None
    assert retriever.invoke(QUESTION) == documents


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        FusionKVRetriever.from_store(tmp_path / "none")


@pytest.mark.parametrize("names", [(), ("engine", "store")])
def test_exactly_one_of_engine_and_corpus(engine: FusionEngine, names: tuple[str, ...]) -> None:
    given: dict[str, Any] = {"engine": engine, "store": Store.open(engine.store.path)}
    with pytest.raises(InvalidInputError, match="either an engine, a store or a server"):
        FusionKVRetriever(**{name: given[name] for name in names})


def test_k_below_one_is_refused(engine: FusionEngine) -> None:
    with pytest.raises(InvalidInputError, match="greater than or equal to 1"):
        FusionKVRetriever(engine=engine, k=0)
    with pytest.raises(InvalidInputError, match="k is 0"):
        FusionKVRetriever(engine=engine).invoke(QUESTION, k=0)


def test_an_empty_question_is_refused(engine: FusionEngine) -> None:
    with pytest.raises(InvalidInputError, match="question is empty"):
        FusionKVRetriever(engine=engine).invoke("  \n")


class Listening(BaseCallbackHandler):
    """Notes what it hears of retrievers."""

    def __init__(self) -> None:
        self.starts: list[tuple[str, list[str] | None]] = []
        self.found: list[list[Document]] = []
        self.errors: list[BaseException] = []

    def on_retriever_start(
        self, serialized: dict[str, Any], query: str, *, tags: list[str] | None = None, **_: Any
    ) -> None:
        self.starts.append((query, tags))

    def on_retriever_end(self, documents: Sequence[Document], **_: Any) -> None:
        self.found.append(list(documents))

    def on_retriever_error(self, error: BaseException, **_: Any) -> None:
        self.errors.append(error)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.asyncio
async def test_callbacks_hear_of_the_question_the_documents_and_errors(
    engine: FusionEngine, way: str
) -> None:
    async def ask(question: str, retriever: FusionKVRetriever) -> list[Document]:
        config = RunnableConfig(callbacks=[heard], tags=["mine"])
        if way == "invoke":
            return retriever.invoke(question, config)
        return await retriever.ainvoke(question, config)

    heard = Listening()
    inner = FusionKVRetriever(engine=engine, k=2)
    outer = FusionKVRetriever(engine=engine, retriever=inner)
    found = await ask(QUESTION, outer)
    assert [query for query, _ in heard.starts] == [QUESTION] * 2  # the inner one is a child
    assert heard.starts[0][1] == ["mine"]
    assert heard.found[-1] == found
    assert heard.errors == []
    for question, retriever in (
        ("  ", inner),
        (QUESTION, FusionKVRetriever(engine=engine, filter={"page": {"$near": 3}})),
    ):
        with pytest.raises(InvalidInputError):
            await ask(question, retriever)
    assert [type(error) for error in heard.errors] == [InvalidInputError] * 2
    assert len(heard.found) == 2


def test_a_store_may_be_given_by_its_old_name_for_now(engine: FusionEngine) -> None:
    expected = FusionKVRetriever(store=engine.store).invoke(QUESTION)
    with pytest.warns(DeprecationWarning, match="corpus is called store now") as warned:
        retriever = FusionKVRetriever(corpus=engine.store)  # type: ignore[call-arg]
    assert warned[0].filename == __file__
    assert retriever.invoke(QUESTION) == expected
    with pytest.raises(InvalidInputError, match="either an engine, a store or a server"):
        FusionKVRetriever(engine=engine, corpus=engine.store)  # type: ignore[call-arg]
