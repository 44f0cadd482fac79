"""Scopes: the same scope hits, another scope misses, in retrieval, in fusing and in serving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode

import fusionrag_integrations.langchain as lc
import fusionrag_integrations.llama_index as li
from fusionrag_integrations import Answer, AnswerSettings, Document, FusionEngine
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.store.kv.types import LayeredKV
from tests.conftest import all_records, town

QUESTION = "Where is house 7 of town number 1?"


@pytest.fixture
def engine(engine: FusionEngine) -> FusionEngine:
    """Towns 0 and 1 are the north's, towns 2 and 3 the south's, and both have a copy of town 4."""
    north = [replace(town(i), scope="north") for i in (0, 1)]
    south = [replace(town(i), scope="south") for i in (2, 3)]
    copies = [replace(town(4), id=f"copy-{scope}", scope=scope) for scope in ("north", "south")]
    engine.ingest([*north, *south, *copies])
    return engine


def records(engine: FusionEngine, document_id: str) -> list[ChunkRecord]:
    catalog = engine.store.catalog
    keys = [key for key in catalog.documents.all() if key.id == document_id]
    return list(catalog.chunks.records(catalog.chunks.ids(keys)).values())


def ask(
    engine: FusionEngine, document_id: str, scopes: tuple[str, ...] | None, **settings: Any
) -> Answer:
    texts = [record.chunk.text for record in records(engine, document_id)]
    given = AnswerSettings(scopes=scopes, max_tokens=2, corrected=False, **settings)
    return engine.answer(question_prompt(texts, QUESTION), given)


def keys_of(engine: FusionEngine, scope: str) -> set[str]:
    """Keys of all KV that was made from the scope's chunks."""
    found = [r for r in all_records(engine.store.catalog) if r.chunk.scope == scope]
    return {key for record in found for key in (record.isolated_key, record.fused_key)}


def test_neighbours_are_of_the_chunks_own_scope(engine: FusionEngine) -> None:
    catalog = engine.store.catalog
    for record in all_records(catalog):
        near = catalog.chunks.records(catalog.kv.neighbours(record.chunk.id)).values()
        assert {n.chunk.scope for n in near} == {record.chunk.scope}


def test_no_key_belongs_to_two_scopes(engine: FusionEngine) -> None:
    assert not keys_of(engine, "north") & keys_of(engine, "south")
    copies = [records(engine, f"copy-{scope}") for scope in ("north", "south")]
    assert [r.chunk.text for r in copies[0]] == [r.chunk.text for r in copies[1]]


class TestServing:
    def test_the_same_scope_hits(self, engine: FusionEngine, served: list[LayeredKV]) -> None:
        answer = ask(engine, "town-1", ("north",))
        assert (answer.fused_chunks, answer.isolated_chunks) == (3, 0)
        assert {kv.key for kv in served} <= keys_of(engine, "north")

    def test_another_scope_misses(self, engine: FusionEngine, served: list[LayeredKV]) -> None:
        answer = ask(engine, "town-1", ("south",))
        assert (answer.fused_chunks, answer.isolated_chunks, answer.missed_chunks) == (0, 0, 0)
        assert answer.usage.reused_tokens == 0
        assert not served

    def test_a_handle_opens_no_other_scope(
        self, engine: FusionEngine, served: list[LayeredKV]
    ) -> None:
        handles = tuple(record.handle for record in records(engine, "town-1"))
        answer = ask(engine, "town-1", ("south",), handles=handles)
        assert answer.usage.reused_tokens == 0
        assert not served

    def test_an_answer_of_another_scope_is_that_of_a_store_without_it(
        self, engine: FusionEngine
    ) -> None:
        other = ask(engine, "town-1", ("south",))
        assert other.token_ids == ask(engine, "town-1", None, kv="none").token_ids

    @pytest.mark.parametrize("scope", ["north", "south"])
    def test_of_a_text_in_both_each_gets_its_own(
        self, engine: FusionEngine, served: list[LayeredKV], scope: str
    ) -> None:
        answer = ask(engine, f"copy-{scope}", (scope,))
        assert answer.fused_chunks == 3
        assert {kv.key for kv in served} <= keys_of(engine, scope)

    def test_of_a_text_in_both_without_a_scope_nobodys_fused_kv_is_used(
        self, engine: FusionEngine
    ) -> None:
        answer = ask(engine, "copy-north", None)
        assert (answer.fused_chunks, answer.isolated_chunks) == (0, 3)

    def test_several_scopes_and_all(self, engine: FusionEngine) -> None:
        assert ask(engine, "town-1", ("south", "north")).fused_chunks == 3
        assert ask(engine, "town-1", None).fused_chunks == 3
        assert ask(engine, "town-1", ()).usage.reused_tokens == 0

    def test_a_longer_text_of_another_scope_hides_nothing(self, engine: FusionEngine) -> None:
        first, second, _ = records(engine, "town-0")
        joined = f"{first.chunk.text}\n\n{second.chunk.text}"
        lc.FusionKVRetriever.from_documents(
            [lc_document(joined, "joined")], engine=engine, scope="south"
        )
        settings = AnswerSettings(scopes=("north",), max_tokens=2, corrected=False)
        answer = engine.answer(question_prompt([joined], QUESTION), settings)
        assert answer.fused_chunks == 2

    def test_a_single_string_is_refused(self) -> None:
        with pytest.raises(ValueError, match="scopes is 'north'; give a tuple of strings"):
            AnswerSettings(scopes="north")  # type: ignore[arg-type]


def lc_document(text: str, source: str) -> Any:
    from langchain_core.documents import Document

    return Document(text, metadata={"source": source})


MODELS: dict[str, Callable[..., dict[str, Any]]] = {
    "langchain llm": lambda engine, prompt, **s: (
        lc.FusionRAGLLM(engine=engine, **s).generate([prompt]).generations[0][0].generation_info
    ),
    "langchain chat": lambda engine, prompt, **s: (
        lc.ChatFusionRAG(engine=engine, **s).invoke(prompt).response_metadata
    ),
    "llama_index complete": lambda engine, prompt, **s: (
        li.FusionRAGLLM(engine=engine, **s).complete(prompt).raw
    ),
    "llama_index chat": lambda engine, prompt, **s: (
        li.FusionRAGLLM(engine=engine, **s).chat([ChatMessage(role="user", content=prompt)]).raw
    ),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_models_of_both_frameworks_keep_to_their_scopes(
    engine: FusionEngine, model: Callable[..., dict[str, Any]]
) -> None:
    prompt = f"{town(1).text}\n\n{QUESTION}"
    inside = model(engine, prompt, scopes=["north"], max_tokens=2)
    outside = model(engine, prompt, scopes=["south"], max_tokens=2)
    assert (inside["chunks"]["fused"], inside["chunks"]["isolated"]) == (2, 1)
    assert outside["usage"]["reused_tokens"] == 0


@pytest.mark.parametrize("scope", ["north", "south"])
def test_retrievers_of_both_frameworks_search_their_scopes(
    engine: FusionEngine, scope: str
) -> None:
    expected = {r.chunk.id for r in all_records(engine.store.catalog) if r.chunk.scope == scope}
    documents = lc.FusionKVRetriever(engine=engine, scopes=[scope], k=99).invoke(QUESTION)
    nodes = li.FusionKVRetriever(engine=engine, scopes=[scope], similarity_top_k=99)
    assert {document.id for document in documents} == expected
    assert {found.node_id for found in nodes.retrieve(QUESTION)} == expected


def test_the_same_id_in_another_scope_is_another_document(
    engine: FusionEngine, served: list[LayeredKV]
) -> None:
    """Whatever is done with one, the other stays as it is."""
    before = all_records(engine.store.catalog)
    old = keys_of(engine, "north")
    engine.ingest([replace(town(1), scope="elsewhere")])
    both = ask(engine, "town-1", ("elsewhere",))  # its text, once for each document
    assert both.fused_chunks == 6
    assert not {kv.key for kv in served} & old
    assert engine.delete(["town-1"]) == 0
    assert engine.delete(["town-1"], scope="elsewhere") == 1
    assert all_records(engine.store.catalog) == before


@pytest.mark.parametrize("source", ["north\x1ftown-0", "north/town-0", "north\0town-0"])
@pytest.mark.parametrize("way", ["document", "langchain", "llama_index"])
def test_no_id_reaches_into_another_scope(engine: FusionEngine, source: str, way: str) -> None:
    before = all_records(engine.store.catalog)
    text = "Another text, of which nobody knows who wrote it, takes no one's place."
    given = {
        "document": lambda: [Document(source, text)],
        "langchain": lambda: lc.to_documents(
            [LangChainDocument(text, metadata={"source": source})]
        ),
        "llama_index": lambda: li.to_documents([TextNode(id_=source, text=text)]),
    }
    engine.ingest(given[way]())
    found = all_records(engine.store.catalog)
    assert [record for record in found if record.chunk.document_id != source] == before
    assert engine.delete([source]) == 1
    assert all_records(engine.store.catalog) == before


def test_no_id_is_that_of_a_captured_text(engine: FusionEngine) -> None:
    """A document by whatever name stays visible, and so does what was captured."""
    text = "A text that came with a question, and that no one has ever ingested before today."
    engine.register_texts([text])
    engine.answer(f"{text}\n\n{QUESTION}", AnswerSettings(max_tokens=1))
    engine.pipeline.adhoc.wait()  # what was captured is kept now
    (captured,) = engine.store.catalog.chunks.with_text(text)
    ids = [captured.chunk.document_id, f"\x1fcaptured\x1f{captured.chunk.id}"]
    engine.ingest([replace(town(6), id=name) for name in ids])
    assert set(ids) <= {key.id for key in engine.store.catalog.documents.all()}
    (kept,) = engine.store.catalog.chunks.with_text(text)
    assert kept == captured
    assert engine.delete(ids) == 2
