"""FusionKVTransform in pipelines: what is new is ingested, what is known costs nothing."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import chromadb
import pytest
from llama_index.core import Document
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode, Node
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.vector_stores.chroma import ChromaVectorStore

from fusionrag_integrations import FusionEngine, IngestReport, KVHandle
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.llama_index import FusionKVTransform
from tests.conftest import all_records, document_ids
from tests.embeddings import LlamaIndexLexical
from tests.llama_index.helpers import paragraph, town_nodes


def story(number: int, parts: int = 4, first: int = 0) -> Document:
    text = " ".join(paragraph(number, part) for part in range(first, first + parts))
    return Document(
        id_=f"story-{number}",
        text=text,
        metadata={"page": number, "file": f"{number}.txt"},
        excluded_llm_metadata_keys=["file"],
    )


def pipeline(engine: FusionEngine, **arguments: Any) -> IngestionPipeline:
    splitter = SentenceSplitter(chunk_size=80, chunk_overlap=0)
    transformations = [splitter, FusionKVTransform(engine=engine)]
    return IngestionPipeline(transformations=transformations, **arguments)


@pytest.fixture
def reports(empty_engine: FusionEngine, monkeypatch: pytest.MonkeyPatch) -> list[IngestReport]:
    """What each ingest did, as they come."""
    reports: list[IngestReport] = []
    ingest = empty_engine.ingest

    def ingest_and_note(*arguments: Any, **more: Any) -> IngestReport:
        reports.append(ingest(*arguments, **more))
        return reports[-1]

    monkeypatch.setattr(empty_engine, "ingest", ingest_and_note)
    return reports


def counts(report: IngestReport) -> tuple[int, int, int]:
    return report.documents_new, report.documents_changed, report.documents_unchanged


def chroma(name: str) -> ChromaVectorStore:
    collection = chromadb.EphemeralClient().create_collection(name)
    return ChromaVectorStore(chroma_collection=collection)


def check_handles(engine: FusionEngine, nodes: Any) -> None:
    for node in nodes:
        handle = KVHandle.from_metadata(node.metadata)
        assert handle is not None
        record = engine.store.catalog.chunks.record(handle.chunk_id)
        assert record is not None
        assert record.chunk.text == node.text.strip()
        assert record.handle == handle


@pytest.mark.parametrize("way", ["run", "arun"])
@pytest.mark.asyncio
async def test_nodes_leave_the_pipeline_with_their_handles(
    empty_engine: FusionEngine, way: str
) -> None:
    made = pipeline(empty_engine)
    stories = [story(1), story(2)]
    nodes = made.run(documents=stories) if way == "run" else await made.arun(documents=stories)
    assert [node.ref_doc_id for node in nodes] == ["story-1"] * 4 + ["story-2"] * 4
    check_handles(empty_engine, nodes)
    text = nodes[0].get_content(MetadataMode.LLM)
    assert "page: 1" in text
    assert "file" not in text
    assert "fusionrag" not in text
    assert "fusionrag" not in nodes[0].get_content(MetadataMode.EMBED)


def test_a_node_keeps_its_id_embedding_and_relationships(empty_engine: FusionEngine) -> None:
    made = pipeline(empty_engine)
    made.transformations.insert(1, LlamaIndexLexical())
    nodes = made.run(documents=[story(1)])
    plain = SentenceSplitter(chunk_size=80, chunk_overlap=0)([story(1)])
    assert [node.get_content() for node in nodes] == [node.get_content() for node in plain]
    assert all(node.embedding for node in nodes)
    assert nodes[0].next_node is not None
    assert nodes[0].next_node.node_id == nodes[1].node_id


def test_a_second_run_computes_nothing(
    empty_engine: FusionEngine, reports: list[IngestReport]
) -> None:
    made = pipeline(empty_engine)
    for _ in range(4):
        check_handles(empty_engine, made.run(documents=[story(1), story(2)]))
    assert counts(reports[0]) == (2, 0, 0)
    assert all(counts(report) == (0, 0, 2) for report in reports[1:])
    assert all(report.isolated_computed == report.fused_computed == 0 for report in reports[1:])
    assert len(reports) == 2  # from the third run on the pipeline's cache answers


def test_the_cache_is_not_asked_once_the_store_has_changed(empty_engine: FusionEngine) -> None:
    made = pipeline(empty_engine)
    for _ in range(3):
        made.run(documents=[story(1)])
    empty_engine.delete(["story-1"])
    check_handles(empty_engine, made.run(documents=[story(1)]))
    assert document_ids(empty_engine.store.catalog) == ["story-1"]


def test_a_cache_from_disk_does_not_stand_in_for_another_store(
    empty_engine: FusionEngine, model_dir: Path, tmp_path: Path
) -> None:
    made = pipeline(empty_engine)
    made.run(documents=[story(1)])
    made.persist(str(tmp_path / "pipeline"))
    other = FusionEngine.from_pretrained(model_dir, store=tmp_path / "other")
    again = pipeline(other)
    again.load(str(tmp_path / "pipeline"))
    check_handles(other, again.run(documents=[story(1)]))


@pytest.mark.parametrize("way", ["run", "arun"])
@pytest.mark.asyncio
async def test_with_a_docstore_only_what_changed_is_ingested_and_replaced(
    empty_engine: FusionEngine, reports: list[IngestReport], way: str
) -> None:
    made = pipeline(
        empty_engine, docstore=SimpleDocumentStore(), vector_store=chroma(f"upserts-{way}")
    )
    made.transformations.append(LlamaIndexLexical())

    async def run(*stories: Document) -> Any:
        documents = list(stories)
        return (
            made.run(documents=documents) if way == "run" else await made.arun(documents=documents)
        )

    await run(story(1), story(2))
    assert {node.ref_doc_id for node in await run(story(1), story(2, first=10))} == {"story-2"}
    assert counts(reports[0]) == (2, 0, 0)
    assert counts(reports[1]) == (0, 1, 0)
    texts = " ".join(r.chunk.text for r in all_records(empty_engine.store.catalog))
    assert paragraph(1, 0) in texts
    assert paragraph(2, 10) in texts
    assert paragraph(2, 0) not in texts
    assert await run(story(1), story(2, first=10)) == []
    assert len(reports) == 2


def test_a_document_that_the_docstore_deletes_stays_until_the_engine_deletes_it(
    empty_engine: FusionEngine,
) -> None:
    """Transformations aren't told of deletions."""
    made = pipeline(
        empty_engine,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        vector_store=chroma("deleting"),
    )
    made.transformations.append(LlamaIndexLexical())
    made.run(documents=[story(1), story(2)])
    made.run(documents=[story(1)])
    assert document_ids(empty_engine.store.catalog) == ["story-1", "story-2"]
    assert empty_engine.delete(["story-2"]) == 1


def test_scopes_keep_pipelines_apart(empty_engine: FusionEngine) -> None:
    transform = FusionKVTransform(engine=empty_engine, scope="north")
    transform(town_nodes(range(1)))
    assert [r.chunk.scope for r in all_records(empty_engine.store.catalog)] == ["north"] * 2
    assert transform.to_dict()["scope"] == "north"


def test_nodes_without_text_are_refused(empty_engine: FusionEngine) -> None:
    with pytest.raises(InvalidInputError, match="A Node without text can't be ingested"):
        FusionKVTransform(engine=empty_engine)([Node()])


def test_several_workers_are_refused(empty_engine: FusionEngine) -> None:
    """A pipeline pickles its transformations for them."""
    with pytest.raises(InvalidInputError, match="without num_workers"):
        pickle.dumps(FusionKVTransform(engine=empty_engine))
