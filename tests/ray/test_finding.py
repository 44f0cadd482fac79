"""Which KV a request needs, found without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.engine.reindex import reindex
from fusionrag_integrations.ray.finding import KVFinder
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.store.generations import collect_generations
from tests.conftest import all_records, town
from tests.waiting import until


@pytest.fixture(scope="module")
def filled(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FusionEngine]:
    path = tmp_path_factory.mktemp("found") / "store"
    with FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48) as engine:
        engine.ingest([town(0), replace(town(1), scope="board")])
        yield engine


@pytest.fixture(scope="module")
def finder(filled: FusionEngine) -> Iterator[KVFinder]:
    with KVFinder.open(str(filled.store.path)) as opened:
        yield opened


@pytest.fixture(scope="module")
def records(filled: FusionEngine) -> list[ChunkRecord]:
    return [r for r in all_records(filled.store.catalog) if r.chunk.scope == ""]


def needed(finder: KVFinder, scopes: list[str] | None = None, **body: Any) -> dict[str, int]:
    return finder.needed(json.dumps(body).encode(), scopes)


def fused(records: list[ChunkRecord]) -> dict[str, int]:
    """The first isolated, as a prompt has it, and the others fused."""
    keys = [records[0].isolated_key, *(record.fused_key for record in records[1:])]
    return {key: len(r.encoded.token_ids) for key, r in zip(keys, records, strict=True)}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": town(0).text},
        {"prompt": [town(0).text]},
        {"messages": [{"role": "user", "content": f"Look:\n{town(0).text}\n\nWhich?"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": town(0).text}]}]},
        {"texts": [{"text": town(0).text}]},
    ],
)
def test_chunks_are_found_wherever_a_body_has_text(
    finder: KVFinder, records: list[ChunkRecord], body: dict[str, Any]
) -> None:
    assert needed(finder, **body) == fused(records)


def test_it_is_what_the_engine_reads(filled: FusionEngine, finder: KVFinder) -> None:

    prompt = f"{town(0).text}\n\nWhich?"
    loaded = filled.load(prompt, AnswerSettings())
    assert set(needed(finder, prompt=prompt)) == {kv.key for kv in loaded.kvs}


def test_what_was_read_is_in_memory(filled: FusionEngine, finder: KVFinder) -> None:
    prompt = f"{town(1).text}\n\nWhich?"
    keys = set(needed(finder, prompt=prompt))
    assert not keys & filled.kv.memory_keys()
    filled.answer(prompt, AnswerSettings(max_tokens=1))
    assert keys <= filled.kv.memory_keys()


def test_settings_and_scopes_count(finder: KVFinder, records: list[ChunkRecord]) -> None:
    isolated = {r.isolated_key: len(r.encoded.token_ids) for r in records}
    assert needed(finder, prompt=town(0).text, kv="isolated") == isolated
    assert needed(finder, prompt=town(0).text, kv="none") == {}
    assert needed(finder, ["board"], prompt=town(0).text) == {}
    assert len(needed(finder, ["board"], prompt=town(1).text)) == 3


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'{"prompt": 3}', b'{"messages": {"a": 1}}', b"[" * 10_000]
)
def test_a_body_that_is_no_request_needs_nothing(finder: KVFinder, body: bytes) -> None:
    assert finder.needed(body, None) == {}


def test_documents_that_change_are_found(filled: FusionEngine, finder: KVFinder) -> None:
    assert needed(finder, prompt=town(5).text) == {}
    filled.ingest([town(5)])
    assert len(needed(finder, prompt=town(5).text)) == 3
    filled.delete(["town-5"])
    assert needed(finder, prompt=town(5).text) == {}


def test_a_directory_that_was_made_anew_is_followed_there(model_dir: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48) as engine:
        engine.ingest([town(0)])
    reindex(model_dir, store=store, kv_format="int8")
    collect_generations(store, grace=0)
    with KVFinder.open(str(store)) as finder:
        assert len(needed(finder, prompt=town(0).text)) == 3


def test_versions_of_a_store_at_a_url_are_followed(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSIONRAG_CACHE", str(tmp_path / "cache"))
    url = (tmp_path / "published").as_uri()
    with FusionEngine.from_pretrained(model_dir, store=url, chunk_tokens=48) as engine:
        engine.ingest([town(0)])
        with KVFinder.open(url, refresh=0.05) as finder:
            assert len(needed(finder, prompt=town(0).text)) == 3
            assert needed(finder, prompt=town(5).text) == {}
            engine.ingest([town(5)])
            until(lambda: len(needed(finder, prompt=town(5).text)) == 3)


def test_neither_the_endpoint_nor_who_deploys_loads_a_model() -> None:
    heavy = ["torch", "transformers", "chromadb", "langchain_core", "llama_index", "ray"]
    code = (
        "import sys, fusionrag_integrations.ray.ingress, fusionrag_integrations.ray.deploying\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.stdout.strip() == "[]", process.stderr
