"""Chunks that come with a question: computed once, kept when worth it, true, and nobody else's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionrag_integrations import Answer, AnswerSettings, Document, FusionEngine
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.serving.adhoc import HOT, Admission, Recent
from fusionrag_integrations.store.kv.disk_budget import Budgets
from tests.conftest import document_ids, town

UPLOAD = (
    "An upload says that the ferry to the island leaves at nine from the old pier, and that the "
    "keeper of the lighthouse sells tickets for it on most days of the week."
)
OTHER = UPLOAD.replace("ferry", "train").replace("island", "castle")
QUESTION = "When does it leave?"


@pytest.fixture
def engine(model_dir: Path, tmp_path: Path) -> FusionEngine:
    return opened(model_dir, tmp_path)


def opened(model_dir: Path, tmp_path: Path, captured: int | None = None) -> FusionEngine:
    made = FusionEngine.from_pretrained(
        model_dir,
        store=tmp_path / "store",
        chunk_tokens=48,
        budgets=Budgets(captured=captured),
    )
    made.ingest([town(0), town(1)])
    return made


def settle(engine: FusionEngine) -> None:
    """Wait for what is done in the background."""
    engine.pipeline.adhoc.wait()


def ask(engine: FusionEngine, *texts: str, **settings: Any) -> Answer:
    known = [record.chunk.text for record in records(engine)[:2]]
    prompt = question_prompt([*known, *texts], QUESTION)
    answer = engine.answer(prompt, AnswerSettings(max_tokens=6, corrected=False, **settings))
    settle(engine)
    return answer


def records(engine: FusionEngine) -> list[Any]:
    catalog = engine.store.catalog
    return list(catalog.chunks.records(catalog.chunks.ids()).values())


def stored(engine: FusionEngine) -> set[str]:
    return set(engine.kv.keys())


def test_it_is_computed_once_and_reused(engine: FusionEngine) -> None:
    engine.register_texts([f"\n{UPLOAD} "])
    first, second = ask(engine, UPLOAD), ask(engine, UPLOAD)
    assert (first.captured_chunks, first.isolated_chunks, second.captured_chunks) == (1, 1, 0)
    assert second.isolated_chunks == 1
    assert first.token_ids == second.token_ids
    assert first.usage.captured_tokens > 0 == second.usage.captured_tokens
    for usage in (first.usage, second.usage):
        parts = usage.reused_tokens, usage.recomputed_tokens, usage.captured_tokens
        assert sum(parts) + usage.fresh_tokens == usage.prompt_tokens
        assert min(parts) >= 0
    assert first.usage.recompute_ratio > second.usage.recompute_ratio
    assert first.usage.token_layers > second.usage.token_layers
    assert first.ttft.capture > 0 == second.ttft.capture


def test_that_its_kv_is_new_is_no_fault(
    engine: FusionEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.register_texts([UPLOAD])
    with caplog.at_level(logging.WARNING):
        first = ask(engine, UPLOAD)
    assert first.captured_chunks == 1
    assert caplog.records == []
    reasons = [fallback.reason for fallback in first.fallbacks]
    assert reasons == ["It came with a question, and hasn't been used often enough to be fused."]


def test_recomputed_as_a_whole_it_is_full_attention(engine: FusionEngine) -> None:
    engine.register_texts([UPLOAD, OTHER])
    answer = ask(engine, UPLOAD, OTHER, selector="all")
    assert answer.captured_chunks == 2
    assert answer.token_ids == ask(engine, UPLOAD, OTHER, kv="none").token_ids


def test_its_kv_is_what_ingest_would_make_whatever_stood_before_it(
    engine: FusionEngine, model_dir: Path, tmp_path: Path
) -> None:
    before = stored(engine)
    engine.register_texts([UPLOAD])
    ask(engine, OTHER, UPLOAD)
    (key,) = stored(engine) - before
    other = FusionEngine.from_pretrained(model_dir, store=tmp_path / "other", chunk_tokens=48)
    other.ingest([Document("upload", UPLOAD)])
    kept, made = engine.kv.get(key).dense(), other.kv.get(key).dense()
    assert kept.token_ids == made.token_ids
    assert torch.allclose(kept.keys, made.keys, atol=1e-4)
    assert torch.allclose(kept.values, made.values, atol=1e-4)


def test_it_outlives_the_engine(engine: FusionEngine, model_dir: Path, tmp_path: Path) -> None:
    engine.register_texts([UPLOAD])
    ask(engine, UPLOAD)
    again = opened(model_dir, tmp_path)
    assert ask(again, UPLOAD).isolated_chunks == 1
    assert len(again.kv.disk.adhoc_keys()) == 1


def test_it_is_in_no_document_and_no_search(engine: FusionEngine) -> None:
    counts = engine.store.catalog.counts()
    engine.register_texts([UPLOAD])
    ask(engine, UPLOAD)
    assert document_ids(engine.store.catalog) == ["town-0", "town-1"]
    assert UPLOAD not in {hit.chunk.text for hit in engine.store.search("ferry", 20)}
    report = engine.ingest([town(0)], delete_others=True)
    assert (report.documents_deleted, report.chunks) == (1, 3)
    assert ask(engine, UPLOAD).isolated_chunks >= 1
    after = engine.store.catalog.counts()
    assert (after.captured_chunks, after.chunks) == (1, counts.chunks - 3)


def test_ingesting_it_takes_it_over(engine: FusionEngine) -> None:
    engine.register_texts([UPLOAD])
    ask(engine, UPLOAD)
    report = engine.ingest([Document("upload", UPLOAD)])
    assert (report.isolated_computed, report.fused_computed) == (0, 1)
    assert engine.store.catalog.counts().captured_chunks == 0
    answer = ask(engine, UPLOAD)
    assert (answer.fused_chunks, answer.isolated_chunks, answer.captured_chunks) == (3, 0, 0)


class TestAdmission:
    def test_a_second_sighting_or_room(self) -> None:
        roomy = False
        admission = Admission(lambda: roomy)
        assert [admission.admits(key) for key in "abab"] == [False, False, True, True]
        roomy = True
        assert admission.admits("c")

    def test_only_so_many_sightings_are_remembered(self) -> None:
        admission = Admission(lambda: False, remembered=2)
        assert [admission.admits(key) for key in "abca"] == [False] * 4
        assert admission.admits("a")

    def test_recent_keys_are_the_last_ones(self) -> None:
        recent: Recent[str] = Recent(2)
        assert [recent.add(key) for key in "abac"] == [False, False, True, False]
        assert list(recent) == ["a", "c"]

    def test_what_comes_once_where_there_is_no_room_is_computed_as_ever(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        engine = opened(model_dir, tmp_path, captured=0)
        before = stored(engine)
        engine.register_texts([UPLOAD])
        answer = ask(engine, UPLOAD, selector="all")
        assert (answer.captured_chunks, answer.isolated_chunks) == (0, 0)
        assert answer.token_ids == ask(engine, UPLOAD, kv="none").token_ids
        assert stored(engine) == before
        assert engine.store.catalog.counts().captured_chunks == 0

    def test_the_coldest_gives_way_and_ingested_kv_never_does(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        engine = opened(model_dir, tmp_path)
        ingested = stored(engine)
        engine.register_texts([UPLOAD])
        ask(engine, UPLOAD)
        size = engine.store.records.file_bytes(
            engine.kv.get(next(iter(engine.kv.disk.adhoc_keys()))).dense()
        )
        engine = opened(model_dir, tmp_path, captured=int(1.5 * size))
        engine.register_texts([OTHER])
        ask(engine, OTHER)  # seen for the first time, without room to spare
        assert stored(engine) - ingested == engine.kv.disk.adhoc_keys()
        first = engine.kv.disk.adhoc_keys()
        assert ask(engine, OTHER).captured_chunks == 1
        assert len(engine.kv.disk.adhoc_keys()) == 1
        assert engine.kv.disk.adhoc_keys() != first
        assert ingested <= stored(engine)
        assert ask(engine, UPLOAD).captured_chunks == 1  # known, but its KV is gone

    def test_short_texts_are_left_alone(self, engine: FusionEngine) -> None:
        engine.register_texts([UPLOAD[:63], "  "])
        assert ask(engine, UPLOAD).captured_chunks == 0


class TestScopes:
    def test_the_same_scope_hits(self, engine: FusionEngine) -> None:
        engine.register_texts([UPLOAD], scope="team")
        assert ask(engine, UPLOAD, scopes=("team",)).captured_chunks == 1
        assert ask(engine, UPLOAD, scopes=("team",)).isolated_chunks == 1

    def test_another_scope_misses(self, engine: FusionEngine) -> None:
        engine.register_texts([UPLOAD], scope="team")
        ask(engine, UPLOAD, scopes=("team",))
        answer = ask(engine, UPLOAD, scopes=("other",))
        assert answer.captured_chunks == answer.isolated_chunks == answer.usage.reused_tokens == 0


class TestFusing:
    def test_what_is_hot_is_fused_in_the_background(self, engine: FusionEngine) -> None:
        engine.register_texts([UPLOAD])
        answers = [ask(engine, UPLOAD) for _ in range(HOT + 2)]
        assert [answer.fused_chunks for answer in answers] == [2] * (HOT + 1) + [3]
        (record,) = (
            r for r in engine.store.catalog.chunks.with_text(UPLOAD) if r.captured and r.fused_key
        )
        assert record.trace is not None
        fused = engine.kv.get(record.fused_key)
        neighbours = engine.store.catalog.chunks.records(
            engine.store.catalog.kv.neighbours(record.chunk.id)
        )
        assert fused.neighbours == tuple(n.isolated_key for n in neighbours.values())

    def test_a_changed_neighbour_lets_go_of_it(self, engine: FusionEngine) -> None:
        engine.register_texts([UPLOAD])
        for _ in range(HOT + 1):
            ask(engine, UPLOAD)
        engine.ingest([Document("town-0", "Nothing is left of it.")], delete_others=True)
        (record,) = engine.store.catalog.chunks.with_text(UPLOAD)
        assert record.fused_key == ""
        assert record.isolated_key in stored(engine)

    def test_while_the_store_is_changed_it_waits(self, engine: FusionEngine) -> None:
        engine.register_texts([UPLOAD])
        with engine.store.writing():
            for _ in range(HOT + 2):
                answer = ask(engine, UPLOAD)
        assert answer.isolated_chunks == 1
        for _ in range(HOT):
            answer = ask(engine, UPLOAD)
        assert answer.fused_chunks == 3


def test_a_store_that_cannot_be_written_answers_all_the_same(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fusionrag_integrations.support.atomic_files.os.fsync", full)
    engine.register_texts([UPLOAD])
    assert ask(engine, UPLOAD).captured_chunks == 1
    assert "No space left" in caplog.text
    monkeypatch.undo()
    assert ask(engine, UPLOAD).captured_chunks == 1
    assert ask(engine, UPLOAD).isolated_chunks == 1
