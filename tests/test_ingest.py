"""Ingest: what is computed, what is kept, what goes, and what an interrupt leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from fusionrag_integrations import Document, FusionEngine, Passage
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.embedding import LexicalEmbedder
from fusionrag_integrations.errors import InvalidInputError, StoreError
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFiles
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.kv.types import ChunkKV
from tests.conftest import document_ids, town


def records(engine: FusionEngine, *names: str) -> list[ChunkRecord]:
    """Of documents with these ids, in whatever scope, or of all."""
    catalog = engine.store.catalog
    keys = [key for name in names for key in catalog.documents.all() if key.id == name]
    return list(catalog.chunks.records(catalog.chunks.ids(keys if names else None)).values())


def stored(engine: FusionEngine) -> RecordStore:
    """The engine's KV records, seen through a store of its own."""
    return RecordStore(
        LocalKVFiles(engine.store.path / "kv"),
        engine.store.catalog.info.record_signature,
        "float32",
    )


def kv_in(engine: FusionEngine, key: str) -> ChunkKV:
    return stored(engine).get(key).dense()


def answer(engine: FusionEngine, *document_ids: str) -> Answer:
    texts = [record.chunk.text for record in records(engine, *document_ids)]
    settings = AnswerSettings(max_tokens=4, corrected=False)
    return engine.answer(question_prompt(texts, "Which house?"), settings)


def interrupted(*given: object) -> None:
    raise KeyboardInterrupt


def stop_at(stage: str, step: int) -> Callable[[str, int, int], None]:
    def progress(at: str, done: int, total: int) -> None:
        if (at, done) == (stage, step):
            raise KeyboardInterrupt

    return progress


def test_every_chunk_gets_isolated_and_fused_kv(engine: FusionEngine) -> None:
    report = engine.ingest([town(0), town(1)])
    assert (report.documents_new, report.chunks) == (2, 6)
    assert (report.isolated_computed, report.fused_computed) == (6, 6)
    for record in records(engine):
        isolated, fused = kv_in(engine, record.isolated_key), kv_in(engine, record.fused_key)
        assert isolated.token_ids == fused.token_ids == record.encoded.token_ids
        assert (isolated.kind, fused.kind) == ("isolated", "fused")
        assert not torch.equal(isolated.values, fused.values)


def test_fused_kv_stands_behind_the_documents_previous_chunks(engine: FusionEngine) -> None:
    engine.ingest([town(0), town(1)])
    first, second, third = records(engine, "town-0")
    neighbours = engine.store.catalog.kv.neighbours(third.chunk.id)
    assert neighbours[-2:] == (first.chunk.id, second.chunk.id)
    keys = engine.store.catalog.chunks.records(neighbours)
    assert kv_in(engine, third.fused_key).neighbours == tuple(
        record.isolated_key for record in keys.values()
    )


def test_neighbours_come_from_the_chunks_own_scope(engine: FusionEngine) -> None:
    engine.ingest([town(0), replace(town(1), scope="secret"), replace(town(2), scope="secret")])
    for record in records(engine):
        near = engine.store.catalog.chunks.records(
            engine.store.catalog.kv.neighbours(record.chunk.id)
        )
        assert {n.chunk.scope for n in near.values()} == {record.chunk.scope}


def test_equal_texts_of_two_scopes_share_no_kv(engine: FusionEngine) -> None:
    secret = replace(town(0), id="copy", scope="secret")
    engine.ingest([town(0), secret])
    keys = [{r.isolated_key for r in records(engine, name)} for name in ("town-0", "copy")]
    assert keys[0].isdisjoint(keys[1])


def test_a_chunk_alone_has_only_isolated_kv(engine: FusionEngine) -> None:
    report = engine.ingest([town(0, paragraphs=1)])
    assert (report.isolated_computed, report.fused_computed) == (1, 0)
    assert answer(engine).isolated_chunks == 1


def test_unchanged_documents_cost_nothing(engine: FusionEngine) -> None:
    engine.ingest([town(0), town(1)])
    before = records(engine)
    report = engine.ingest([town(0), town(1)])
    assert (report.documents_unchanged, report.documents_new, report.documents_changed) == (2, 0, 0)
    assert (report.isolated_computed, report.fused_computed) == (0, 0)
    assert records(engine) == before


def test_a_changed_document_costs_only_what_changed(engine: FusionEngine) -> None:
    engine.ingest([town(0), town(1)])
    text = town(1).text
    report = engine.ingest([replace(town(1), text=text.replace("paragraph 2", "paragraph two"))])
    assert (report.documents_changed, report.chunks) == (1, 6)
    assert report.isolated_computed == 1
    assert "paragraph two" in records(engine, "town-1")[2].chunk.text


def test_only_new_chunks_are_embedded(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[str] = []
    embed = LexicalEmbedder.embed_documents

    def watched(embedder: LexicalEmbedder, texts: Sequence[str]) -> list[list[float]]:
        embedded.extend(texts)
        return embed(embedder, texts)

    monkeypatch.setattr(LexicalEmbedder, "embed_documents", watched)
    engine.ingest([town(0), town(1)])
    assert len(embedded) == 6
    embedded.clear()
    changed = town(1).text.replace("paragraph 2", "paragraph two")
    engine.ingest([town(0), replace(town(1), text=changed)])
    assert [text.split("\n", 1)[1] for text in embedded] == [changed.split("\n\n")[2]]


def test_others_are_deleted_where_asked(engine: FusionEngine) -> None:
    engine.ingest([town(0), town(1), town(2)])
    report = engine.ingest(iter([town(1), town(3)]), delete_others=True)
    assert (report.documents_deleted, report.documents_unchanged, report.documents_new) == (2, 1, 1)
    assert document_ids(engine.store.catalog) == ["town-1", "town-3"]
    assert {hit.chunk.document_id for hit in engine.store.search("town", 9)} == {
        "town-1",
        "town-3",
    }


def test_of_two_documents_with_one_id_the_later_counts(engine: FusionEngine) -> None:
    changed = replace(town(0), text=town(5).text)
    for documents in ([town(0), changed], [changed, town(0)]):
        engine.ingest(documents)
        texts = "\n\n".join(record.chunk.text for record in records(engine))
        assert texts == documents[-1].text


def test_a_document_that_was_split_keeps_its_passages(engine: FusionEngine) -> None:
    passages = (
        Passage("  The fox jumps.\n", {"page": 1}),
        Passage(" \n "),
        Passage("word " * 100, {"page": 2}),
    )
    engine.ingest([Document("fox", passages=passages, metadata={"page": 0, "author": "Ada"})])
    found = [(r.chunk.text, r.chunk.metadata) for r in records(engine, "fox")]
    assert found == [
        ("  The fox jumps.", {"page": 1, "author": "Ada"}),
        (("word " * 100).strip(), {"page": 2, "author": "Ada"}),
    ]
    with pytest.raises(InvalidInputError, match="has a text and passages; give one"):
        Document("both", "text", passages=passages)


def test_new_metadata_costs_no_kv(engine: FusionEngine) -> None:
    engine.ingest([town(0), town(1)])
    report = engine.ingest([replace(town(1), metadata={"page": 3})])
    assert (report.documents_changed, report.isolated_computed, report.fused_computed) == (1, 0, 0)
    assert {record.chunk.metadata["page"] for record in records(engine, "town-1")} == {3}
    assert answer(engine).fused_chunks == 6


def test_documents_that_are_not_named_stay(engine: FusionEngine) -> None:
    engine.ingest([town(0)])
    report = engine.ingest([town(1)])
    assert (report.documents_new, report.chunks) == (1, 6)
    assert answer(engine).fused_chunks == 6


def test_what_no_chunk_uses_is_deleted(engine: FusionEngine) -> None:
    engine.ingest([town(0), town(1)])
    old = set(stored(engine).keys())
    engine.ingest([replace(town(1), text=town(5).text)])
    left = set(stored(engine).keys())
    assert left == engine.store.catalog.kv.live_keys()
    assert old - left


def test_deleting_takes_all_kv_made_from_or_with_the_document(engine: FusionEngine) -> None:
    engine.ingest([town(0), town(1)])
    isolated = {record.isolated_key for record in records(engine, "town-0")}
    assert engine.delete(["town-1", "unknown"]) == 1
    assert set(stored(engine).keys()) == isolated
    hits = engine.store.search("Town number 1", 9)
    assert {hit.chunk.document_id for hit in hits} == {"town-0"}


@pytest.mark.parametrize("before", ["nothing", "a delete that the catalog had no room for"])
def test_deleting_frees_room_before_the_index_needs_some(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """As on a full disk, where Chroma can't write before something is gone."""
    engine.ingest([town(0), town(1)])
    if before != "nothing":
        monkeypatch.setattr(engine.store.catalog.documents, "delete", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.delete(["town-0"])
        monkeypatch.undo()
    gone = {record.isolated_key for record in records(engine, "town-0")}
    index = engine.store.index
    remove = index.remove

    def with_room(chunk_ids: Sequence[str]) -> None:
        if gone & set(stored(engine).keys()):
            raise StoreError("No space left on device")
        remove(chunk_ids)

    monkeypatch.setattr(index, "remove", with_room)
    engine.delete(["town-0"])
    assert document_ids(engine.store.catalog) == ["town-1"]


def test_deleting_looks_at_no_other_record(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.ingest([town(0), town(1), town(2)])

    def listed(*_: object) -> None:
        raise AssertionError("all records were listed")

    with monkeypatch.context() as patch:
        for name in ("entries", "keys"):
            patch.setattr(RecordFiles, name, listed)
        assert engine.delete(["town-1"]) == 1
    assert set(stored(engine).keys()) == engine.store.catalog.kv.live_keys()


def test_deleting_leaves_isolated_kv_that_another_document_shares(engine: FusionEngine) -> None:
    engine.ingest([town(0), replace(town(0), id="copy"), town(1)])
    engine.delete(["copy"])
    assert answer(engine, "town-0").missed_chunks == 0


@pytest.mark.parametrize(
    ("stage", "step", "isolated", "fused"),
    [("catalog", 2, 6, 6), ("isolated", 0, 6, 6), ("isolated", 4, 2, 6), ("fused", 5, 0, 1)],
)
def test_an_interrupted_ingest_goes_on_where_it_stopped(
    engine: FusionEngine,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    step: int,
    isolated: int,
    fused: int,
) -> None:
    monkeypatch.setattr("fusionrag_integrations.ingest.chunk_prefill.PASS_TOKENS", 1)
    with pytest.raises(KeyboardInterrupt):
        engine.ingest([town(0), town(1)], progress=stop_at(stage, step))
    report = engine.ingest([town(0), town(1)])
    assert (report.isolated_computed, report.fused_computed) == (isolated, fused)
    assert answer(engine).fused_chunks == 6


def test_an_interrupted_ingest_ends_as_one_that_was_not(
    engine: FusionEngine, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chunks that share a pass are rounded a little differently than alone.
    monkeypatch.setattr("fusionrag_integrations.ingest.chunk_prefill.PASS_TOKENS", 1)
    with pytest.raises(KeyboardInterrupt):
        engine.ingest([town(0), town(1)], progress=stop_at("fused", 3))
    engine.ingest([town(0), town(1)])
    other = FusionEngine.from_pretrained(model_dir, store=tmp_path / "other", chunk_tokens=48)
    other.ingest([town(0), town(1)])
    assert records(engine) == records(other)
    for key in stored(other).keys():  # noqa: SIM118  a store, not a dictionary
        assert torch.equal(kv_in(engine, key).values, kv_in(other, key).values)


@pytest.mark.parametrize("then", ["ingest", "delete"])
def test_after_an_interrupt_the_documents_files_say_what_is_fused(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Whichever change comes next: the catalog is rebuilt from them."""
    monkeypatch.setattr("fusionrag_integrations.ingest.chunk_prefill.PASS_TOKENS", 1)
    with pytest.raises(KeyboardInterrupt):
        engine.ingest([town(0), town(1)], progress=stop_at("fused", 4))
    if then == "ingest":
        engine.ingest([])
    else:
        engine.delete(["town-9"])
    corpus = engine.store
    for path in corpus.manifests.paths():
        told = corpus.manifests.read(path).records
        assert list(told) == records(engine, told[0].chunk.document_id)
    assert sum(bool(record.fused_key) for record in records(engine)) == (
        6 if then == "ingest" else 4
    )


@pytest.mark.parametrize(("stage", "step"), [("embed", 0), ("isolated", 1), ("fused", 1)])
def test_what_was_there_keeps_serving_after_an_interrupt(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
) -> None:
    monkeypatch.setattr("fusionrag_integrations.ingest.chunk_prefill.PASS_TOKENS", 1)
    engine.ingest([town(0), town(1)])
    before = answer(engine, "town-0")
    with pytest.raises(KeyboardInterrupt):
        engine.ingest([town(2), town(3)], progress=stop_at(stage, step))
    after = answer(engine, "town-0")
    assert after.fused_chunks == 3
    assert after.token_ids == before.token_ids


def test_a_document_that_fails_leaves_the_others(engine: FusionEngine) -> None:
    engine.ingest([town(0), town(1)])
    before = answer(engine, "town-0").token_ids
    with pytest.raises(InvalidInputError, match="can't be stored"):
        engine.ingest([town(2), Document("bad", "text", metadata={"page": object()})])
    assert "bad" not in document_ids(engine.store.catalog)
    assert answer(engine, "town-0").token_ids == before
    assert engine.ingest([]).chunks == 9


def test_a_chunk_longer_than_the_context_is_refused(model_dir: Path, tmp_path: Path) -> None:
    engine = FusionEngine.from_pretrained(model_dir, store=tmp_path / "s", chunk_tokens=5_000)
    text = " ".join(f"word{i}" for i in range(1_000))
    with pytest.raises(InvalidInputError, match="smaller chunk_tokens"):
        engine.ingest([Document("long", text)])


def test_only_one_ingest_or_delete_runs_at_a_time(engine: FusionEngine, model_dir: Path) -> None:
    other = FusionEngine.from_pretrained(model_dir, store=engine.store.path)
    refused: list[str] = []

    def meanwhile(stage: str, done: int, total: int) -> None:
        if stage == "fused" and not refused:
            for attempt in (lambda: other.ingest([town(1)]), lambda: other.delete(["town-0"])):
                with pytest.raises(StoreError, match="Another ingest or delete") as error:
                    attempt()
                refused.append(str(error.value))

    assert engine.ingest([town(0)], progress=meanwhile).chunks == 3
    assert len(refused) == 2
    assert other.ingest([town(1)]).chunks == 6


def test_the_lock_is_let_go_at_the_end(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FileLock] = []

    def kept(*args: Any, **settings: Any) -> FileLock:
        made.append(FileLock(*args, **settings))
        return made[-1]

    monkeypatch.setattr("fusionrag_integrations.support.atomic_files.FileLock", kept)
    engine.ingest([])
    assert [lock.is_locked for lock in made] == [False]


def test_a_damaged_neighbour_is_made_anew(engine: FusionEngine) -> None:
    engine.ingest([town(0)])
    first = records(engine)[0]
    intact = kv_in(engine, first.isolated_key)
    for path in engine.store.path.glob(f"kv/*/{first.isolated_key}*"):
        path.write_bytes(path.read_bytes()[:-7])
    engine.ingest([town(1)])
    assert first.chunk.id in engine.store.catalog.kv.neighbours(
        records(engine, "town-1")[0].chunk.id
    )
    assert torch.equal(kv_in(engine, first.isolated_key).keys, intact.keys)


def test_records_that_went_missing_are_made_anew(engine: FusionEngine) -> None:
    engine.ingest([town(0)])
    first, second, _ = records(engine)
    stored(engine).delete(first.isolated_key)
    stored(engine).delete(second.fused_key)
    report = engine.ingest([])
    assert (report.isolated_computed, report.fused_computed) == (1, 1)
    assert answer(engine).fused_chunks == 3


def test_progress_names_each_stage_and_reaches_its_end(engine: FusionEngine) -> None:
    last: dict[str, tuple[int, int]] = {}
    engine.ingest(
        [town(0), town(1)], progress=lambda stage, done, total: last.update({stage: (done, total)})
    )
    assert list(last) == ["catalog", "embed", "isolated", "fused"]
    assert last == {"catalog": (2, 2), "embed": (0, 0), "isolated": (6, 6), "fused": (6, 6)}


def test_a_document_without_text_is_known_and_has_no_chunks(engine: FusionEngine) -> None:
    report = engine.ingest([Document("empty", "  \n")])
    assert (report.documents_new, report.chunks) == (1, 0)
    assert engine.ingest([Document("empty", "  \n")]).documents_unchanged == 1


def test_fused_chunks_have_a_trace_of_their_neighbours(engine: FusionEngine) -> None:
    engine.ingest([town(0), town(1)])
    catalog = engine.store.catalog
    for record in records(engine):
        near = catalog.chunks.records(catalog.kv.neighbours(record.chunk.id)).values()
        trace = record.trace
        assert trace is not None
        assert trace.neighbours == tuple(n.isolated_key for n in near)
        assert trace.neighbours == kv_in(engine, record.fused_key).neighbours
        assert trace.neighbour_tokens == sum(len(n.encoded.token_ids) for n in near)
        count = len(record.encoded.token_ids)
        assert len(trace.sensitivity) == len(trace.outside) == len(trace.inside) == count
        shares = [o + i for o, i in zip(trace.outside, trace.inside, strict=True)]
        assert 0.0 < min(shares) <= max(shares) < 1.0  # the rest went to the ingest prefix
        assert sum(trace.by_neighbour) == pytest.approx(sum(trace.outside) / count, rel=1e-4)
        isolated, fused = kv_in(engine, record.isolated_key), kv_in(engine, record.fused_key)
        moved = [(fused.keys - isolated.keys).square(), (fused.values - isolated.values).square()]
        sizes = [isolated.keys.square(), isolated.values.square()]
        expected = sum(
            m.sum((1, 3)) / s.sum((1, 2, 3))[:, None] * count
            for m, s in zip(moved, sizes, strict=True)
        ).mean(0)
        assert trace.sensitivity == pytest.approx((expected / 2).tolist(), rel=1e-3)


def test_a_chunk_alone_has_no_trace(engine: FusionEngine) -> None:
    engine.ingest([town(0, paragraphs=1), replace(town(1), scope="secret")])
    assert [record.trace for record in records(engine, "town-0")] == [None]
    assert all(record.trace for record in records(engine, "town-1"))


def test_traces_stay_without_the_neighbours_and_are_renewed_by_the_next_ingest(
    engine: FusionEngine,
) -> None:
    engine.ingest([town(0), town(1)])
    before = records(engine, "town-0")
    engine.delete(["town-1"])
    assert records(engine, "town-0") == [replace(record, fused_key="") for record in before]
    engine.ingest([])
    after = records(engine, "town-0")
    own = {record.isolated_key for record in after}
    for old, new in zip(before, after, strict=True):
        assert not set(old.trace.neighbours) <= own
        assert set(new.trace.neighbours) <= own
        assert new.trace.sensitivity != old.trace.sensitivity


def test_new_metadata_keeps_the_traces(engine: FusionEngine) -> None:
    engine.ingest([town(0), town(1)])
    before = [record.trace for record in records(engine)]
    engine.ingest([replace(town(1), metadata={"page": 3})])
    assert [record.trace for record in records(engine)] == before


def test_traces_of_texts_that_are_gone_are_forgotten(engine: FusionEngine) -> None:
    engine.ingest([town(0), town(1)])
    engine.delete(["town-1"])
    engine.ingest([town(1, paragraphs=1)])
    catalog = engine.store.catalog
    assert catalog.kv.traced_keys() == {record.fused_key for record in records(engine)}
    engine.delete(["town-0", "town-1"])
    assert catalog.kv.traced_keys() == set()


def test_a_trace_is_of_the_kv_that_counts(engine: FusionEngine) -> None:
    """Edited, cut off before old KV is collected, and edited back: the first KV counts again."""
    engine.ingest([town(0), town(1)])
    edited = replace(town(1), text=town(1).text.replace("paragraph 2", "paragraph two"))
    with pytest.raises(KeyboardInterrupt):
        engine.ingest([edited], progress=stop_at("fused", 6))
    engine.ingest([town(1)])
    for record in records(engine):
        assert record.trace.neighbours == kv_in(engine, record.fused_key).neighbours


def test_equal_texts_in_two_documents_have_traces_of_their_own(engine: FusionEngine) -> None:
    """Each is fused behind its own document's chunks."""
    same = "He was born in the small town by the sea, and it makes lamps near the river bank."
    texts = [f"{town(number, paragraphs=1).text}\n\n{same}" for number in (1, 2)]
    engine.ingest([Document(f"d{i}", text) for i, text in enumerate(texts)])
    for record in records(engine):
        assert record.trace.neighbours == kv_in(engine, record.fused_key).neighbours
