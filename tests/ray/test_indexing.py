"""What workers of an ingest on Ray do, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.documents.embedding import LexicalEmbedder
from fusionrag_integrations.errors import InvalidInputError, StoreError, StoreMismatchError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.ingest.work import ChangedDocument, ChunkTokens, Computed, FusedChunk
from fusionrag_integrations.ray.indexing import StageAccount, Workers, workers
from fusionrag_integrations.ray.indexing.ledger import Ledger, told
from fusionrag_integrations.ray.indexing.model_kv import KVPlace, ModelPlace
from fusionrag_integrations.ray.indexing.workers import KVWorker, TextWorker
from fusionrag_integrations.store.changes import Update
from fusionrag_integrations.store.kv.base import KVFiles
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.shared import SharedKVFiles
from fusionrag_integrations.store.layout import KV_DIRECTORY
from fusionrag_integrations.store.objects.opening import open_objects
from tests.conftest import all_records, town
from tests.tiny_models import build_for


@pytest.fixture(scope="module")
def model(model_dir: Path) -> CausalModel:
    return CausalModel.load(model_dir)


@pytest.fixture(params=["directory", "url"])
def where(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path | str:
    monkeypatch.setenv("FUSIONRAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "store" if request.param == "directory" else f"memory://{uuid4().hex}"


@pytest.fixture
def engine(model: CausalModel, where: Path | str) -> FusionEngine:
    """Three documents without KV: what workers find when they begin."""
    made = FusionEngine.open(model, where, chunk_tokens=48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fusionrag_integrations.ingest.pipeline.Ingest._compute_kv", lambda *_: (0, 0, 0)
        )
        made.ingest([town(0), town(1), town(2)])
    return made


@pytest.fixture
def place(engine: FusionEngine, where: Path | str) -> KVPlace:
    return KVPlace(where, engine.store.catalog.info, workers=2)


def batch(tasks: Sequence[object]) -> dict[str, Any]:
    column = np.empty(len(tasks), dtype=object)
    column[:] = tasks
    return {"task": column}


def worker(model_dir: Path, place: KVPlace, ledger: Ledger, isolated: int = 0) -> KVWorker:
    return KVWorker(ledger, ModelPlace(model_dir, threads=1), place, isolated)


def stored_bytes(where: Path | str, keys: Sequence[str]) -> int:
    """What everybody sees of these records."""
    files: KVFiles = (
        LocalKVFiles(where / KV_DIRECTORY)
        if isinstance(where, Path)
        else SharedKVFiles(open_objects(where))
    )
    return sum(entry.nbytes for entry in files.entries() if entry.key in set(keys))


class TestKVWorkers:
    def test_they_store_what_an_ingest_here_stores(
        self, engine: FusionEngine, model_dir: Path, place: KVPlace
    ) -> None:
        records = all_records(engine.store.catalog)
        tokens = [ChunkTokens.of(record) for record in records]
        ledger = Ledger()
        made = worker(model_dir, place, ledger)
        results = made(batch(tokens))["result"]
        assert list(results) == [Computed(chunk.key) for chunk in tokens]
        fused = [FusedChunk(tokens[2], tuple(tokens[:2]))]
        (computed,) = made(batch(fused))["result"]
        assert computed.key == fused[0].key
        assert computed.trace.neighbours == (tokens[0].key, tokens[1].key)
        for key in (*(chunk.key for chunk in tokens), computed.key):
            assert engine.store.records.get(key).token_ids
        accounts = {stage.stage: stage for stage in ledger.accounts()}
        sizes = {
            "isolated": stored_bytes(place.store, [chunk.key for chunk in tokens]),
            "fused": stored_bytes(place.store, [computed.key]),
        }
        assert {name: accounts[name].kv_bytes for name in sizes} == sizes
        assert min(sizes.values()) > 0

    def test_what_is_there_is_not_computed_again(
        self, engine: FusionEngine, model_dir: Path, place: KVPlace
    ) -> None:
        tokens = [ChunkTokens.of(record) for record in all_records(engine.store.catalog)]
        ledger = Ledger()
        made = worker(model_dir, place, ledger)
        made(batch(tokens[:4]))
        results = made(batch(tokens))["result"]
        assert {computed.key for computed in results} == {chunk.key for chunk in tokens}
        (isolated,) = (stage for stage in ledger.accounts() if stage.stage == "isolated")
        assert (isolated.items, isolated.found, isolated.lost) == (len(tokens) + 4, 4, 0)

    def test_isolated_kv_that_fused_kv_needs_is_computed_where_it_is_missing(
        self, engine: FusionEngine, model_dir: Path, place: KVPlace
    ) -> None:
        tokens = [ChunkTokens.of(record) for record in all_records(engine.store.catalog)]
        made = worker(model_dir, place, Ledger())
        (computed,) = made(batch([FusedChunk(tokens[1], (tokens[0],))]))["result"]
        wanted = {tokens[0].key, tokens[1].key, computed.key}
        assert engine.store.records.existing(wanted) == wanted

    def test_what_is_fused_waits_for_isolated_kv_of_others(
        self,
        engine: FusionEngine,
        model_dir: Path,
        place: KVPlace,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        tokens = [ChunkTokens.of(record) for record in all_records(engine.store.catalog)][:2]
        ledger = Ledger()
        one, other = (worker(model_dir, place, ledger, isolated=2) for _ in range(2))
        monkeypatch.setattr(workers, "sleep", lambda seconds: other(batch(tokens)))
        one(batch([FusedChunk(tokens[1], (tokens[0],))]))
        accounts = {stage.stage: stage for stage in ledger.accounts()}
        assert (accounts["isolated"].items, accounts["isolated"].found) == (2, 0)
        assert accounts["fused"].kv_bytes < 0.6 * accounts["isolated"].kv_bytes  # of one chunk

    def test_another_model_is_refused(
        self, engine: FusionEngine, model: CausalModel, place: KVPlace, tmp_path: Path
    ) -> None:
        torch.manual_seed(1)
        other = build_for(model.tokenizer, "llama_gqa2")
        other.save_pretrained(tmp_path / "other")
        model.tokenizer.save_pretrained(tmp_path / "other")
        ledger = Ledger()
        made = worker(tmp_path / "other", place, ledger)
        tokens = [ChunkTokens.of(record) for record in all_records(engine.store.catalog)]
        (error,) = made(batch(tokens))["result"]
        assert isinstance(error, StoreMismatchError)
        assert engine.store.records.existing(chunk.key for chunk in tokens) == set()

    def test_a_store_that_is_not_on_its_machine_is_named(
        self, engine: FusionEngine, model_dir: Path, place: KVPlace, tmp_path: Path
    ) -> None:
        made = worker(model_dir, replace(place, store=tmp_path / "elsewhere"), Ledger())
        (error,) = made(batch([ChunkTokens("ab", (1,))]))["result"]
        assert isinstance(error, StoreError)
        assert "elsewhere isn't on" in str(error)
        assert not (tmp_path / "elsewhere").exists()


def test_text_workers_split_and_embed_as_the_store_does(engine: FusionEngine) -> None:
    facts = ModelFacts.of(engine.model)
    ledger = Ledger()
    made = TextWorker(ledger, facts, engine.store.catalog.info, lambda: None)
    changed = [ChangedDocument(town(number), f"hash {number}") for number in range(3)]
    updates = list(made(batch(changed))["result"])
    records = all_records(engine.store.catalog)
    assert [record for update in updates for record in update.records] == records
    assert [(update.document, update.content_hash) for update in updates] == [
        (one.document.key, one.content_hash) for one in changed
    ]
    kept = engine.store.embeddings([record.chunk.id for record in records])  # in float32
    vectors = {i: v for update in updates for i, v in update.vectors.items()}
    assert {i: np.float32(v).tolist() for i, v in vectors.items()} == kept
    assert [stage.items for stage in ledger.accounts()] == [3]


def test_a_chunk_that_is_too_long_comes_back_as_the_error_that_it_is(engine: FusionEngine) -> None:
    facts = replace(ModelFacts.of(engine.model), context_window=8)
    made = TextWorker(Ledger(), facts, engine.store.catalog.info, lambda: None)
    (error,) = made(batch([ChangedDocument(town(0), "hash")]))["result"]
    assert isinstance(error, InvalidInputError)
    assert "smaller chunk_tokens" in str(error)


class Longer(LexicalEmbedder):
    """A vector's length is another."""

    def embed_query(self, text: str) -> list[float]:
        return [*super().embed_query(text), 1.0]


class Turned(LexicalEmbedder):
    """A vector is another of the same length."""

    def embed_query(self, text: str) -> list[float]:
        return super().embed_query(text)[::-1]


class Rounded(LexicalEmbedder):
    """As on other hardware."""

    def embed_query(self, text: str) -> list[float]:
        return [x + 1e-6 for x in super().embed_query(text)]


@pytest.mark.parametrize("other", [Longer, Turned])
def test_a_worker_with_another_embedding_than_the_stores_makes_no_vectors(
    engine: FusionEngine, other: type[LexicalEmbedder]
) -> None:
    made = TextWorker(Ledger(), ModelFacts.of(engine.model), engine.store.catalog.info, other)
    (error,) = made(batch([ChangedDocument(town(0), "hash")]))["result"]
    assert isinstance(error, StoreMismatchError)
    assert repr(LexicalEmbedder.name) in str(error)


def test_a_worker_whose_vectors_are_rounded_otherwise_makes_them(engine: FusionEngine) -> None:
    made = TextWorker(Ledger(), ModelFacts.of(engine.model), engine.store.catalog.info, Rounded)
    (update,) = made(batch([ChangedDocument(town(0), "hash")]))["result"]
    assert isinstance(update, Update)


def test_what_a_lost_worker_had_begun_is_counted() -> None:
    ledger = Ledger()
    ledger.started("isolated", 2.0)
    ledger.began("isolated", 5)  # by one that is lost
    ledger.started("isolated", 3.0)
    with told(ledger, "isolated", 5) as done:
        done.found, done.kv_bytes = 2, 100
    (account,) = ledger.accounts()
    assert replace(account, seconds=0.0) == StageAccount(
        "isolated", items=5, found=2, lost=5, starts=2, loading_seconds=5.0, kv_bytes=100
    )
    assert account.seconds > 0


@pytest.mark.parametrize(
    "given", [{"count": 0}, {"cpus": 0}, {"gpus": -0.5}, {"price_per_hour": -1.0}, {"count": "two"}]
)
def test_workers_that_no_machine_has_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Workers(**given)
