"""From users' documents, Chroma collections and retrievers to documents with handles."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from chromadb.api.client import SharedSystemClient
from langchain_chroma import Chroma
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever
from langchain_community.document_transformers import LongContextReorder
from langchain_community.retrievers import BM25Retriever
from langchain_community.vectorstores import FAISS
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_text_splitters import RecursiveCharacterTextSplitter

from fusionrag_integrations import FusionEngine, KVHandle
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.langchain import FusionKVRetriever, to_documents
from tests.conftest import document_ids, town
from tests.embeddings import LangChainLexical
from tests.langchain.chains import CHAINS, found_share

QUESTION = "Where is house 15 of town number 2?"


class Reversed(BaseDocumentCompressor):
    """Stands for a reranker: another order, and fewer documents."""

    def compress_documents(self, documents: Any, query: str, callbacks: Any = None) -> Any:
        return list(documents)[::-1][:3]


class Cut(BaseDocumentCompressor):
    """Stands for an extractor: every document without its last words."""

    def compress_documents(self, documents: Any, query: str, callbacks: Any = None) -> Any:
        return [d.model_copy(update={"page_content": d.page_content[:-10]}) for d in documents]


def faiss_store(splits: list[Document]) -> FAISS:
    return FAISS.from_documents(splits, LangChainLexical())


@pytest.fixture
def splits() -> list[Document]:
    """Four towns as a text splitter leaves them, a page number on each piece."""
    splitter = RecursiveCharacterTextSplitter(chunk_size=200, chunk_overlap=0)
    towns = [
        Document(town(i).text, metadata={"source": f"towns/{i}.txt", "number": i}) for i in range(4)
    ]
    pieces = splitter.split_documents(towns)
    for page, piece in enumerate(pieces):
        piece.metadata["page"] = page
        piece.metadata["index"] = 100 if page == 3 else 0  # named as one of ours
    assert len(pieces) == 12
    return pieces


@pytest.fixture
def engine(model_dir: Path, tmp_path: Path) -> FusionEngine:
    return FusionEngine.from_pretrained(model_dir, store=tmp_path / "store", chunk_tokens=48)


def handle(document: Document) -> KVHandle | None:
    return KVHandle.from_metadata(document.metadata)


class TestFromDocuments:
    def test_each_piece_is_a_chunk_and_a_source_is_a_document(
        self, engine: FusionEngine, splits: list[Document]
    ) -> None:
        FusionKVRetriever.from_documents(splits, engine=engine)
        catalog = engine.store.catalog
        assert document_ids(catalog) == [f"towns/{i}.txt" for i in range(4)]
        records = catalog.chunks.records(catalog.chunks.ids()).values()
        assert [r.chunk.text for r in records] == [s.page_content for s in splits]
        assert all(r.fused_key for r in records)
        second = catalog.chunks.ids([DocumentKey("towns/1.txt")])[1]
        assert (
            catalog.kv.neighbours(second)[-1] == catalog.chunks.ids([DocumentKey("towns/1.txt")])[0]
        )

    def test_it_retrieves_what_was_put_in_with_its_metadata(
        self, engine: FusionEngine, splits: list[Document]
    ) -> None:
        retriever = FusionKVRetriever.from_documents(splits, engine=engine, k=4)
        found = retriever.invoke(QUESTION)
        assert len(found) == 4
        originals = {split.page_content: split.metadata for split in splits}
        for document in found:
            assert originals[document.page_content].items() <= document.metadata.items()
            assert handle(document)

    def test_the_same_again_costs_nothing_and_a_changed_source_replaces_the_old(
        self, engine: FusionEngine, splits: list[Document]
    ) -> None:
        FusionKVRetriever.from_documents(splits, engine=engine)
        assert engine.ingest([]).isolated_computed == 0
        changed = Document("Town number 1 is gone.", metadata={"source": "towns/1.txt"})
        retriever = FusionKVRetriever.from_documents([changed], engine=engine, k=20)
        texts = [d.page_content for d in retriever.invoke(QUESTION)]
        assert "Town number 1 is gone." in texts
        assert not {s.page_content for s in splits if s.metadata["number"] == 1} & set(texts)
        assert len(texts) == 10

    def test_it_retrieves_from_its_own_scope(
        self, engine: FusionEngine, splits: list[Document]
    ) -> None:
        north = FusionKVRetriever.from_documents(splits[:6], engine=engine, scope="north", k=20)
        south = FusionKVRetriever.from_documents(splits[6:], engine=engine, scope="south", k=20)
        assert {d.metadata["number"] for d in north.invoke(QUESTION)} == {0, 1}
        assert {d.metadata["number"] for d in south.invoke(QUESTION)} == {2, 3}

    def test_one_source_in_two_scopes_is_two_documents(
        self, engine: FusionEngine, splits: list[Document]
    ) -> None:
        for scope in ("north", "south", ""):
            FusionKVRetriever.from_documents(splits[:3], engine=engine, scope=scope)
        known = engine.store.catalog.documents.all()
        assert known == [("towns/0.txt", scope) for scope in ("", "north", "south")]
        for scope in ("north", "south", ""):
            mine = FusionKVRetriever(engine=engine, retriever=bm25(splits[:3]), scopes=[scope])
            for document in mine.invoke(QUESTION):
                named = handle(document)
                assert named
                record = engine.store.catalog.chunks.record(named.chunk_id)
                assert record
                assert record.chunk.scope == scope

    def test_a_source_that_looks_like_another_scopes_stays_apart(
        self, engine: FusionEngine
    ) -> None:
        public = [Document("The bridge was built in 1911.", metadata={"source": "board/memo"})]
        secret = [Document("The bridge is to be sold soon.", metadata={"source": "memo"})]
        FusionKVRetriever.from_documents(public, engine=engine)
        retriever = FusionKVRetriever.from_documents(secret, engine=engine, scope="board")
        assert engine.store.catalog.counts().documents == 2
        assert engine.delete(["memo"]) == 0
        assert engine.delete(["memo"], scope="board") == 1
        assert retriever.invoke("bridge") == []
        assert document_ids(engine.store.catalog) == ["board/memo"]

    def test_metadata_in_another_order_is_the_same(self, engine: FusionEngine) -> None:
        text = "One fox jumps over the lazy dog."
        for metadata in ({"source": "a", "page": 1}, {"page": 1, "source": "a"}):
            FusionKVRetriever.from_documents([Document(text, metadata=metadata)], engine=engine)
        report = engine.ingest(to_documents([Document(text, metadata=metadata)]))
        assert report.documents_unchanged == 1
        assert engine.store.catalog.revision == 1

    def test_what_a_retriever_marked_can_be_ingested_again(
        self, engine: FusionEngine, splits: list[Document]
    ) -> None:
        FusionKVRetriever.from_documents(splits, engine=engine)
        found = FusionKVRetriever(engine=engine, retriever=faiss(splits)).invoke(QUESTION)
        [again] = to_documents(found[:1])
        assert not [key for key in again.passages[0].metadata if key.startswith("fusionrag")]

    def test_without_a_source_each_piece_is_a_document(self, engine: FusionEngine) -> None:
        pieces = [Document("One fox and a dog.", id="a"), Document("Two towns by the river.")]
        FusionKVRetriever.from_documents(pieces, engine=engine)
        first, second = sorted(document_ids(engine.store.catalog), key=len)
        assert (first, len(second)) == ("a", 64)

    def test_metadata_that_cannot_be_kept_is_named(self, engine: FusionEngine) -> None:
        pieces = [Document("One fox.", metadata={"source": "a.txt", "when": object()})]
        with pytest.raises(InvalidInputError, match=r"'a\.txt'.*can't be stored"):
            FusionKVRetriever.from_documents(pieces, engine=engine)

    def test_lists_and_nothing_as_metadata_come_back(self, engine: FusionEngine) -> None:
        metadata = {"tags": ["a", "b"], "author": None, "page": 3}
        pieces = [Document("One fox jumps over the lazy dog.", metadata=metadata)]
        [found] = FusionKVRetriever.from_documents(pieces, engine=engine).invoke("fox")
        assert metadata.items() <= found.metadata.items()


class TestFromChroma:
    @pytest.fixture
    def vectorstore(self, splits: list[Document], tmp_path: Path) -> Chroma:
        SharedSystemClient.clear_system_cache()  # it may know a directory of this name that is gone
        directory = str(tmp_path / "chroma")
        return Chroma.from_documents(splits, LangChainLexical(), persist_directory=directory)

    def test_all_it_holds_is_ingested_and_it_goes_on_retrieving(
        self, engine: FusionEngine, vectorstore: Chroma
    ) -> None:
        retriever = FusionKVRetriever.from_chroma(
            vectorstore, engine=engine, search_kwargs={"k": 5}
        )
        assert engine.store.catalog.counts().chunks == 12
        plain = vectorstore.as_retriever(search_kwargs={"k": 5}).invoke(QUESTION)
        found = retriever.invoke(QUESTION)
        assert [d.page_content for d in found] == [d.page_content for d in plain]
        assert all(map(handle, found))

    @pytest.mark.parametrize(
        "search",
        [
            {"search_type": "mmr", "search_kwargs": {"k": 3, "fetch_k": 10}},
            {"search_kwargs": {"k": 9, "filter": {"number": 2}}},
            {
                "search_type": "similarity_score_threshold",
                "search_kwargs": {"score_threshold": 0.3},
            },
        ],
        ids=["mmr", "filter", "threshold"],
    )
    def test_it_searches_as_the_vector_store_does(
        self, engine: FusionEngine, vectorstore: Chroma, search: dict[str, Any]
    ) -> None:
        retriever = FusionKVRetriever.from_chroma(vectorstore, engine=engine, **search)
        plain = vectorstore.as_retriever(**search).invoke(QUESTION)
        found = retriever.invoke(QUESTION)
        assert plain
        assert [d.page_content for d in found] == [d.page_content for d in plain]
        assert all(map(handle, found))

    def test_more_rows_than_are_read_at_once(
        self, engine: FusionEngine, vectorstore: Chroma, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fusionrag_integrations.langchain.documents.BATCH", 5)
        FusionKVRetriever.from_chroma(vectorstore, engine=engine)
        assert engine.store.catalog.counts().chunks == 12

    def test_a_vector_store_that_cannot_list_is_refused(
        self, engine: FusionEngine, splits: list[Document]
    ) -> None:
        with pytest.raises(InvalidInputError, match=r"FAISS can't list.*retriever=retriever"):
            FusionKVRetriever.from_chroma(faiss_store(splits), engine=engine)


def bm25(splits: list[Document]) -> BaseRetriever:
    return BM25Retriever.from_documents(splits, k=4)


def faiss(splits: list[Document]) -> BaseRetriever:
    return faiss_store(splits).as_retriever(search_kwargs={"k": 4})


def ensemble(splits: list[Document]) -> BaseRetriever:
    return EnsembleRetriever(retrievers=[bm25(splits), faiss(splits)], weights=[0.5, 0.5])


def reranked(splits: list[Document]) -> BaseRetriever:
    return ContextualCompressionRetriever(base_compressor=Reversed(), base_retriever=faiss(splits))


class TestAroundAnyRetriever:
    @pytest.mark.parametrize("make", [bm25, faiss, ensemble, reranked])
    def test_documents_come_as_they_are_with_handles(
        self, engine: FusionEngine, splits: list[Document], make: Any
    ) -> None:
        FusionKVRetriever.from_documents(splits, engine=engine)
        plain = make(splits)
        retriever = FusionKVRetriever(engine=engine, retriever=plain)
        expected, found = plain.invoke(QUESTION), retriever.invoke(QUESTION)
        assert [d.page_content for d in found] == [d.page_content for d in expected] != []
        for document, original in zip(found, expected, strict=True):
            assert original.metadata.items() <= document.metadata.items()
            named = handle(document)
            assert named
            record = engine.store.catalog.chunks.record(named.chunk_id)
            assert record
            assert record.chunk.text == document.page_content
            assert record.handle == named
        assert found_share(engine, retriever, CHAINS["LCEL, f-string template"], QUESTION) >= 0.95

    @pytest.mark.asyncio
    async def test_asynchronously_too(self, engine: FusionEngine, splits: list[Document]) -> None:
        FusionKVRetriever.from_documents(splits, engine=engine)
        retriever = FusionKVRetriever(engine=engine, retriever=bm25(splits))
        assert await retriever.ainvoke(QUESTION) == retriever.invoke(QUESTION)
        assert len(await retriever.ainvoke(QUESTION, k=2)) == 2

    def test_what_was_not_ingested_passes_through_without_a_handle(
        self, engine: FusionEngine, splits: list[Document]
    ) -> None:
        FusionKVRetriever.from_documents(splits[::2], engine=engine)
        found = FusionKVRetriever(engine=engine, retriever=bm25(splits)).invoke(QUESTION)
        known = {s.page_content for s in splits[::2]}
        assert {bool(handle(d)) for d in found} == {True, False}
        assert all(bool(handle(d)) == (d.page_content in known) for d in found)

    def test_documents_that_a_compressor_cut_are_found_as_far_as_they_go(
        self, engine: FusionEngine, splits: list[Document]
    ) -> None:
        FusionKVRetriever.from_documents(splits, engine=engine)
        cutting = ContextualCompressionRetriever(base_compressor=Cut(), base_retriever=bm25(splits))
        retriever = FusionKVRetriever(engine=engine, retriever=cutting)
        assert not any(map(handle, retriever.invoke(QUESTION)))
        assert found_share(engine, retriever, CHAINS["LCEL, f-string template"], QUESTION) >= 0.95

    def test_reordered_documents_keep_their_handles(
        self, engine: FusionEngine, splits: list[Document]
    ) -> None:
        retriever = FusionKVRetriever.from_documents(splits, engine=engine, k=5)
        found = (retriever | LongContextReorder().transform_documents).invoke(QUESTION)
        assert len(found) == 5
        assert all(map(handle, found))

    def test_another_scope_gives_no_handle(
        self, engine: FusionEngine, splits: list[Document]
    ) -> None:
        FusionKVRetriever.from_documents(splits, engine=engine, scope="north")
        for scopes, expected in ((["north"], True), (["south"], False), (None, True)):
            retriever = FusionKVRetriever(engine=engine, retriever=bm25(splits), scopes=scopes)
            assert {bool(handle(d)) for d in retriever.invoke(QUESTION)} == {expected}

    def test_a_text_of_two_documents_is_told_by_its_source(self, engine: FusionEngine) -> None:
        same = "He was born in Paris, in a small house by the river, near the old bridge."
        pieces = [Document(same, metadata={"source": name}) for name in ("ada", "bela")]
        FusionKVRetriever.from_documents(pieces, engine=engine)
        first, second = FusionKVRetriever(engine=engine, retriever=bm25(pieces)).invoke("born")
        assert handle(first) != handle(second)
        nobodys = bm25([Document(same)])
        [found] = FusionKVRetriever(engine=engine, retriever=nobodys).invoke("born")
        assert handle(found) is None


def scores_of(retriever: FusionKVRetriever) -> list[float]:
    return [score for _, score in retriever.similarity_search_with_score(QUESTION)]


class TestSearch:
    @pytest.fixture
    def retriever(self, engine: FusionEngine, splits: list[Document]) -> FusionKVRetriever:
        return FusionKVRetriever.from_documents(splits, engine=engine, k=12)

    @pytest.mark.parametrize(
        ("where", "numbers"),
        [
            ({"number": 2}, {2}),
            ({"number": {"$gt": 1}}, {2, 3}),
            ({"number": {"$in": [0, 3]}}, {0, 3}),
            ({"$or": [{"number": 0}, {"page": {"$gte": 9}}]}, {0, 3}),
            ({"number": 1, "page": {"$lt": 4}}, {1}),
            ({"document_id": "towns/2.txt"}, {2}),
            ({"index": 100}, {1}),
            ({"number": 99}, set()),
        ],
    )
    def test_filters_on_metadata(
        self, retriever: FusionKVRetriever, where: dict[str, Any], numbers: set[int]
    ) -> None:
        filtered = retriever.model_copy(update={"filter": where})
        found = filtered.invoke(QUESTION)
        assert {d.metadata["number"] for d in found} == numbers

    @pytest.mark.parametrize("where", [{"$and": 3}, {"number": {"$like": "x"}}, {"number": None}])
    def test_a_filter_that_cannot_be_is_named(
        self, retriever: FusionKVRetriever, where: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidInputError, match=r"filter .*can't be used.*\$gt"):
            retriever.model_copy(update={"filter": where}).invoke(QUESTION)

    def test_a_threshold_leaves_out_what_is_less_similar(
        self, retriever: FusionKVRetriever
    ) -> None:
        scores = sorted(scores_of(retriever))
        assert scores[0] < scores[6]
        limited = retriever.model_copy(update={"score_threshold": scores[6]})
        assert sorted(scores_of(limited)) == scores[6:]
        assert retriever.model_copy(update={"score_threshold": 1.1}).invoke(QUESTION) == []

    def test_mmr_weighs_similarity_against_variety(self, retriever: FusionKVRetriever) -> None:
        fields = {"k": 4, "search_type": "mmr", "fetch_k": 12}
        nearest = retriever.similarity_search_with_score(QUESTION, k=4)
        alike = retriever.model_copy(update={**fields, "lambda_mult": 1.0})
        varied = retriever.model_copy(update={**fields, "lambda_mult": 0.0})
        assert sorted(scores_of(alike)) == pytest.approx(sorted(score for _, score in nearest))
        assert len(varied.invoke(QUESTION)) == 4
        assert {d.id for d in varied.invoke(QUESTION)} != {d.id for d, _ in nearest}

    @pytest.mark.parametrize(
        "field",
        [
            {"search_kwargs": {"k": 8}},
            {"search_type": "x"},
            {"lambda_mult": 2},
            {"k": 0},
            {"scopes": "north"},
        ],
    )
    def test_fields_that_cannot_be_are_refused(
        self, engine: FusionEngine, field: dict[str, Any]
    ) -> None:
        with pytest.raises(ValueError, match=next(iter(field))):
            FusionKVRetriever(engine=engine, **field)

    def test_how_to_search_is_told_to_ones_own_retriever(
        self, engine: FusionEngine, splits: list[Document]
    ) -> None:
        with pytest.raises(ValueError, match=r"filter, k can't be given with a retriever of your"):
            FusionKVRetriever(engine=engine, retriever=bm25(splits), k=3, filter={"page": 1})

    def test_an_empty_store_has_nothing_and_says_so(
        self, engine: FusionEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            assert FusionKVRetriever(engine=engine).invoke(QUESTION) == []
        assert "holds no chunks" in caplog.text
