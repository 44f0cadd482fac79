"""An engine over an index and KV files that its caller gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusionrag_integrations import Answer, AnswerSettings, FusionEngine, Store
from fusionrag_integrations.errors import KVMissingError, StoreError
from fusionrag_integrations.langchain import FusionKVRetriever
from tests.conftest import town
from tests.store.memory import MemoryKVFiles, MemoryVectorIndex

QUESTION = "Where is house 1?"


def made(model_dir: Path, path: Path, index: MemoryVectorIndex, files: MemoryKVFiles) -> Answer:
    """What an engine answers from two towns."""
    with FusionEngine.from_pretrained(
        model_dir, store=path, chunk_tokens=48, index=index, kv_files=files
    ) as engine:
        engine.ingest([town(0), town(1)])
        texts = [hit.chunk.text for hit in engine.store.search("Town number 1", 3)]
        return engine.answer("\n\n".join([*texts, QUESTION]), AnswerSettings(max_tokens=8))


def test_all_that_is_given_is_used_and_left_open(model_dir: Path, tmp_path: Path) -> None:
    index, files = MemoryVectorIndex(), MemoryKVFiles()
    answer = made(model_dir, tmp_path / "store", index, files)
    assert answer.fused_chunks == 2
    assert len(index.ids()) == 6
    assert len(list(files.entries())) == 12
    assert not (tmp_path / "store/index").exists()
    assert not list((tmp_path / "store").rglob("*.safetensors"))
    again = made(model_dir, tmp_path / "store", index, files)
    assert (again.text, again.usage) == (answer.text, answer.usage)


def test_they_answer_as_a_directory_does(model_dir: Path, tmp_path: Path) -> None:
    given = made(model_dir, tmp_path / "given", MemoryVectorIndex(), MemoryKVFiles())
    with FusionEngine.from_pretrained(model_dir, store=tmp_path / "own", chunk_tokens=48) as engine:
        engine.ingest([town(0), town(1)])
        texts = [hit.chunk.text for hit in engine.store.search("Town number 1", 3)]
        own = engine.answer("\n\n".join([*texts, QUESTION]), AnswerSettings(max_tokens=8))
    assert (given.token_ids, given.usage) == (own.token_ids, own.usage)


def test_an_index_that_lacks_chunks_is_filled_from_the_catalog(
    model_dir: Path, tmp_path: Path
) -> None:
    made(model_dir, tmp_path, MemoryVectorIndex(), MemoryKVFiles())
    index = MemoryVectorIndex()
    with Store.open(tmp_path, index=index) as store:
        assert index.ids() == set()  # until it is searched
        assert store.search("Town number 1", 1)[0].chunk.document_id == "town-1"
        assert index.ids() == set(store.catalog.chunks.ids())


def test_and_so_is_one_that_another_process_did_not_fill(model_dir: Path, tmp_path: Path) -> None:
    made(model_dir, tmp_path, MemoryVectorIndex(), MemoryKVFiles())
    index = MemoryVectorIndex()
    with Store.open(tmp_path, index=index) as reader:
        reader.search("Town number 1", 1)
        with FusionEngine.from_pretrained(
            model_dir, store=tmp_path, index=MemoryVectorIndex(), kv_files=MemoryKVFiles()
        ) as writer:
            writer.ingest([town(2)])
        assert reader.search("Town number 2", 1)[0].chunk.document_id == "town-2"
        assert index.ids() == set(reader.catalog.chunks.ids())


def test_the_directory_has_no_index_of_its_own_then(model_dir: Path, tmp_path: Path) -> None:
    made(model_dir, tmp_path, MemoryVectorIndex(), MemoryKVFiles())
    with pytest.raises(StoreError, match="isn't in its directory: it is a MemoryVectorIndex"):
        Store.open(tmp_path)


def test_kv_that_is_not_in_the_files_given_is_a_miss(model_dir: Path, tmp_path: Path) -> None:
    index = MemoryVectorIndex()
    answer = made(model_dir, tmp_path, index, MemoryKVFiles())
    with FusionEngine.from_pretrained(
        model_dir, store=tmp_path, index=index, kv_files=MemoryKVFiles()
    ) as engine:
        texts = [hit.chunk.text for hit in engine.store.search("Town number 1", 3)]
        missed = engine.answer("\n\n".join([*texts, QUESTION]), AnswerSettings(max_tokens=8))
        with pytest.raises(KVMissingError):
            engine.kv.get(next(iter(engine.store.catalog.kv.live_keys())))
    assert missed.missed_chunks == 3
    assert len(missed.token_ids) == len(answer.token_ids)


def test_a_deletion_reaches_both(model_dir: Path, tmp_path: Path) -> None:
    index, files = MemoryVectorIndex(), MemoryKVFiles()
    made(model_dir, tmp_path, index, files)
    with FusionEngine.from_pretrained(
        model_dir, store=tmp_path, index=index, kv_files=files
    ) as engine:
        assert engine.delete(["town-0", "town-1"]) == 2
    assert index.ids() == set()
    assert list(files.entries()) == []


def test_a_retriever_over_them(model_dir: Path, tmp_path: Path) -> None:
    index = MemoryVectorIndex()
    made(model_dir, tmp_path, index, MemoryKVFiles())
    with Store.open(tmp_path, index=index) as store:
        found = FusionKVRetriever(store=store, k=1).invoke("Town number 1")
    assert "Town number 1" in found[0].page_content
    with FusionKVRetriever.from_store(tmp_path, index=index, k=1) as retriever:
        assert retriever.invoke("Town number 1") == found
