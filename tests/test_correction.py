"""Corrections: means by index in the chunk, measured, kept as files, added when KV is placed."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusionrag_integrations import AnswerSettings, Document, FusionEngine
from fusionrag_integrations.attention.rope import rotate
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import InvalidInputError, StoreError
from fusionrag_integrations.execution.correction import CorrectedKV
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.ingest.deviations import Deviations
from fusionrag_integrations.ingest.mixtures import (
    CHUNKS,
    assembled,
    count_of,
    measure_correction,
    mixed,
    seeds,
)
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.store.corrections import (
    INDICES,
    Correction,
    Corrections,
    ScopeCorrection,
)
from fusionrag_integrations.store.kv.types import ChunkKV
from fusionrag_integrations.store.repair import repair
from fusionrag_integrations.store.verify import find_damage
from tests.conftest import all_records, town
from tests.damage import KINDS, deleted, flipped

SHAPE = (3, 2, INDICES, 16)
CPU = torch.device("cpu")
TOWNS = 6  # of three chunks each: just enough to measure on


def correction(seed: int = 0) -> Correction:
    made = torch.Generator().manual_seed(seed)
    return Correction(torch.randn(SHAPE, generator=made), torch.randn(SHAPE, generator=made))


def chunk_kv(tokens: int, dtype: torch.dtype = torch.float32) -> ChunkKV:
    made = torch.Generator().manual_seed(tokens)
    keys, values = (torch.randn(3, 2, tokens, 16, generator=made).to(dtype) for _ in range(2))
    return ChunkKV("ab", "fused", tuple(range(tokens)), keys, values)


class TestCorrectedKV:
    @pytest.mark.parametrize("tokens", [1, 5, INDICES - 1, INDICES, INDICES + 1, 70])
    def test_each_token_gets_the_mean_of_its_index(self, tokens: int) -> None:
        kv, means = chunk_kv(tokens), correction()
        keys, values = CorrectedKV(kv, means).tensors(slice(None), CPU)
        for t in range(tokens):
            index = min(t, INDICES - 1)
            expected = kv.keys[:, :, t] + means.keys[:, :, index]
            torch.testing.assert_close(keys[:, :, t], expected)
            expected = kv.values[:, :, t] + means.values[:, :, index]
            torch.testing.assert_close(values[:, :, t], expected)

    def test_some_layers_are_the_same_as_of_all(self) -> None:
        made = CorrectedKV(chunk_kv(40), correction())
        whole, some = made.tensors(slice(None), CPU), made.tensors(slice(1, 3), CPU)
        assert torch.equal(whole[0][1:3], some[0])
        assert torch.equal(whole[1][1:3], some[1])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_the_dtype_stays_and_so_does_what_is_stored(self, dtype: torch.dtype) -> None:
        kv = chunk_kv(40, dtype)
        before = kv.keys.clone(), kv.values.clone()
        keys, values = CorrectedKV(kv, correction()).tensors(slice(None), CPU)
        assert keys.dtype == values.dtype == dtype
        assert torch.equal(kv.keys, before[0])
        assert torch.equal(kv.values, before[1])

    def test_it_is_the_same_chunk(self) -> None:
        kv = chunk_kv(3)
        made = CorrectedKV(kv, correction())
        assert (made.key, made.kind, made.token_ids) == (kv.key, kv.kind, kv.token_ids)
        assert made.ready()
        assert not made.rotated

    def test_other_shapes_are_refused(self) -> None:
        keys = torch.zeros(3, 2, INDICES + 1, 16)
        with pytest.raises(InvalidInputError, match=r"\[L, Hkv, 32, D\]"):
            Correction(keys, keys)


class TestDeviations:
    def test_the_mean_is_by_index(self) -> None:
        """What is off by the same at an index in all chunks is found to the number."""
        shift = correction()
        off = None
        for tokens in (20, 33, 50):
            kv = chunk_kv(tokens)
            true = CorrectedKV(kv, shift).tensors(slice(None), CPU)
            one = Deviations.of((kv.keys, kv.values), true, torch.arange(tokens))
            off = one if off is None else off + one
        assert off is not None
        found = off.mean()
        torch.testing.assert_close(found.keys, shift.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.values, shift.values, rtol=1e-4, atol=1e-4)

    def test_a_part_of_a_chunk_counts_where_it_stands(self) -> None:
        kv, shift = chunk_kv(30), correction()
        true = CorrectedKV(kv, shift).tensors(slice(None), CPU)
        part = slice(7, 12)
        stored = kv.keys[:, :, part], kv.values[:, :, part]
        off = Deviations.of(stored, (true[0][:, :, part], true[1][:, :, part]), torch.arange(7, 12))
        found = off.mean().keys
        torch.testing.assert_close(found[:, :, part], shift.keys[:, :, part], rtol=1e-4, atol=1e-4)
        assert not found[:, :, :7].any()
        assert not found[:, :, 12:].any()

    def test_chance_is_drawn_to_nothing(self) -> None:
        """Noise without a mean: 16 chunks' plain mean keeps 1/16 of its square, this hardly any."""
        made = torch.Generator().manual_seed(1)
        zero = torch.zeros(SHAPE)
        noise = [tuple(torch.randn(SHAPE, generator=made) for _ in range(2)) for _ in range(16)]
        at = torch.arange(INDICES)
        off = [Deviations.of((zero, zero), (keys, values), at) for keys, values in noise]
        total = off[0]
        for one in off[1:]:
            total = total + one
        plain = torch.stack([keys for keys, _ in noise]).mean(0).square().mean()
        assert total.mean().keys.square().mean() < plain / 3


class TestFiles:
    @pytest.fixture
    def corrections(self, engine: FusionEngine) -> Corrections:
        engine.ingest([town(0), replace(town(1), scope="north")])
        return Corrections(engine.store.path, engine.store.catalog)

    @pytest.fixture
    def ids(self, engine: FusionEngine, corrections: Corrections) -> tuple[str, ...]:
        return tuple(engine.store.catalog.chunks.ids([DocumentKey("town-0")]))

    def test_what_is_written_is_read(self, corrections: Corrections, ids: tuple[str, ...]) -> None:
        made = correction()
        corrections.write("", ScopeCorrection(made, ids, 3))
        found = corrections.read("")
        assert found is not None
        assert found.correction is not None
        assert torch.equal(found.correction.keys, made.keys)
        assert torch.equal(found.correction.values, made.values)
        assert (found.chunk_ids, found.chunks) == (ids, 3)

    def test_that_it_is_no_use_is_kept_too(
        self, corrections: Corrections, ids: tuple[str, ...]
    ) -> None:
        corrections.write("", ScopeCorrection(None, ids, 3))
        found = corrections.read("")
        assert found is not None
        assert found.correction is None
        assert corrections.of("") == (None, "")

    def test_each_scope_has_its_own(self, corrections: Corrections, ids: tuple[str, ...]) -> None:
        corrections.write("", ScopeCorrection(correction(), ids, 3))
        assert corrections.of("")[0] is not None
        assert corrections.of("north") == (None, "")

    def test_one_scopes_file_in_anothers_place_is_none(
        self, engine: FusionEngine, corrections: Corrections, ids: tuple[str, ...]
    ) -> None:
        corrections.write("", ScopeCorrection(correction(), ids, 3))
        (file,) = (engine.store.path / "corrections").glob("[0-9a-f]*")
        corrections.write("north", ScopeCorrection(None, ids, 3))
        (other,) = set((engine.store.path / "corrections").glob("[0-9a-f]*")) - {file}
        other.write_bytes(file.read_bytes())
        found, reason = corrections.of("north")
        assert found is None
        assert "another store or scope" in reason
        assert [path for path, _ in corrections.damaged()] == [other]

    def test_a_new_file_is_seen(self, corrections: Corrections, ids: tuple[str, ...]) -> None:
        assert corrections.of("") == (None, "")
        corrections.write("", ScopeCorrection(correction(1), ids, 3))
        first, _ = corrections.of("")
        corrections.write("", ScopeCorrection(correction(2), ids, 3))
        second, _ = corrections.of("")
        assert first is not None
        assert second is not None
        assert not torch.equal(first.keys, second.keys)

    @pytest.mark.parametrize("how", ["deleted", "changed"])
    def test_it_does_not_outlive_a_chunk(
        self, engine: FusionEngine, corrections: Corrections, ids: tuple[str, ...], how: str
    ) -> None:
        corrections.write("", ScopeCorrection(correction(), ids, 3))
        assert corrections.of("")[0] is not None
        if how == "deleted":
            engine.delete(["town-0"])
        else:
            engine.ingest([replace(town(0), text="Another text, which has nothing of the old.")])
        assert corrections.of("") == (None, "")
        assert not list((engine.store.path / "corrections").glob("[0-9a-f]*"))

    def test_damage_is_told_and_counts_as_none(
        self,
        engine: FusionEngine,
        corrections: Corrections,
        ids: tuple[str, ...],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        corrections.write("", ScopeCorrection(correction(), ids, 3))
        (file,) = (engine.store.path / "corrections").glob("[0-9a-f]*")
        whole = file.read_bytes()
        step = max(1, len(whole) // 97)
        for at in range(0, len(whole), step):
            flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
            for content in (flipped, whole[:at]):
                caplog.clear()
                file.write_bytes(content)
                with caplog.at_level(logging.WARNING):
                    assert corrections.read("") is None
                assert "damaged" in caplog.text
        file.write_bytes(whole)
        assert corrections.read("") is not None

    def test_verify_finds_damage_and_repair_removes_it(
        self, engine: FusionEngine, corrections: Corrections, ids: tuple[str, ...]
    ) -> None:
        corrections.write("", ScopeCorrection(correction(), ids, 3))
        store = engine.store.path
        assert not list(find_damage(store))
        (file,) = (store / "corrections").glob("[0-9a-f]*")
        file.write_bytes(file.read_bytes()[:-1])
        (found,) = find_damage(store)
        assert (found.area, found.path, found.fixed) == ("corrections", file, False)
        (problem,) = repair(store)
        assert (problem.path, problem.fixed) == (file, True)
        assert not list(find_damage(store))
        assert not file.exists()

    def test_links_are_not_followed(
        self, engine: FusionEngine, corrections: Corrections, ids: tuple[str, ...], tmp_path: Path
    ) -> None:
        corrections.write("", ScopeCorrection(correction(), ids, 3))
        (file,) = (engine.store.path / "corrections").glob("[0-9a-f]*")
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
        assert corrections.read("") is None


class TestMixtures:
    def test_how_many(self) -> None:
        assert count_of(2 * CHUNKS - 1) == 0
        assert count_of(2 * CHUNKS) == count_of(500) == 4
        assert count_of(1_000) == 7  # 7 x 8 chunks are 3% of computing 1,000 twice, rounded down
        assert count_of(10**6) == 16

    def test_seeds_are_spread(self) -> None:
        assert seeds([str(i) for i in range(20)], 4) == ["0", "5", "10", "15"]

    def test_a_mixture_holds_what_fits(self, engine: FusionEngine) -> None:
        engine.ingest([town(i) for i in range(4)])
        records = all_records(engine.store.catalog)
        found = mixed(records, 2_048)
        assert len(found) == CHUNKS
        assert {r.chunk.id for r in found} == {r.chunk.id for r in records[:CHUNKS]}
        assert [r.chunk.id for r in found] != [r.chunk.id for r in records[:CHUNKS]]
        long = [replace_tokens(record, 900) for record in records]
        assert len(mixed(long, 10_000)) == 2
        assert len(mixed(long, 2_048)) == 1

    @pytest.mark.parametrize("same", [True, False])
    def test_only_what_is_off_alike_everywhere_is_corrected(
        self, engine: FusionEngine, same: bool
    ) -> None:
        """Stored KV is the true KV of two prompts, shifted: alike, or each the other way, so that
        what one says of the other makes it worse.
        """
        engine.ingest([town(i) for i in range(TOWNS)])
        records = all_records(engine.store.catalog)
        prompts = [mixed(records[start : start + CHUNKS], 2_048) for start in (0, CHUNKS)]
        stored: dict[str, ChunkKV] = {}
        for prompt, way in zip(prompts, (1.0, 1.0 if same else -1.0), strict=True):
            shift = Correction(*(torch.full(SHAPE, -0.7 * way) for _ in range(2)))
            for chunk_id, kv in true_kv(engine, prompt).items():
                keys, values = CorrectedKV(kv, shift).tensors(slice(None), CPU)
                stored[chunk_id] = replace(kv, keys=keys, values=values)
        found, ids = measure_correction(
            engine.executor, prompts, lambda record: stored[record.chunk.id], lambda *_: None
        )
        assert sorted(ids) == sorted(r.chunk.id for prompt in prompts for r in prompt[1:])
        if same:
            assert found is not None
            torch.testing.assert_close(found.keys[:, :, 1:], torch.full(SHAPE, 0.7)[:, :, 1:])
        else:
            assert found is None


def replace_tokens(record: ChunkRecord, count: int) -> ChunkRecord:
    ids, offsets = tuple(range(count)), ((0, 1),) * count
    return replace(record, encoded=replace(record.encoded, token_ids=ids, offsets=offsets))


def true_kv(engine: FusionEngine, records: Sequence[ChunkRecord]) -> dict[str, ChunkKV]:
    """KV of a prompt's chunks as a dense prefill of all of it computes it."""
    model = engine.model
    executor = Executor(model)
    prompt = assembled(model, records)
    buffer = executor.new_buffer(len(prompt))
    executor.forward_rows(prompt.token_ids, range(len(prompt)), buffer)
    found: dict[str, ChunkKV] = {}
    for span in prompt.spans:
        assert span.length == len(span.record.encoded.token_ids)  # whole, in this tokenizer
        there = slice(span.start, span.stop)
        back = model.rotation(range(span.start, span.stop)).inverse()
        found[span.record.chunk.id] = ChunkKV(
            "ab",
            "fused",
            span.record.encoded.token_ids,
            rotate(buffer.keys[:, :, there], back),
            buffer.values[:, :, there].clone(),
        )
    return found


def whole_placed(engine: FusionEngine, scope: str) -> tuple[bool, list[torch.Tensor]]:
    """Whether a scope's KV is corrected, and all that is placed of it."""
    records = all_records(engine.store.catalog)
    texts = sorted(record.chunk.text for record in records if record.chunk.scope == scope)
    loaded = engine.load(question_prompt(texts, "Where?"), AnswerSettings(scopes=(scope,)))
    corrected = any(isinstance(kv, CorrectedKV) for kv in loaded.kvs)
    return corrected, [t for kv in loaded.kvs for t in kv.tensors(slice(None), CPU)]


class TestIngest:
    @pytest.fixture
    def engine(self, engine: FusionEngine) -> FusionEngine:
        engine.ingest([town(i) for i in range(TOWNS)])
        return engine

    def about(self, engine: FusionEngine) -> ScopeCorrection | None:
        return Corrections(engine.store.path, engine.store.catalog).read("")

    def use(self, engine: FusionEngine) -> Correction:
        """Put a correction in the place of the one that ingest has measured."""
        measured = self.about(engine)
        assert measured is not None
        made = correction()
        corrections = Corrections(engine.store.path, engine.store.catalog)
        corrections.write("", replace(measured, correction=made))
        return made

    def test_it_is_measured_once(self, engine: FusionEngine) -> None:
        measured = self.about(engine)
        assert measured is not None
        assert measured.chunks == 3 * TOWNS
        assert set(measured.chunk_ids) <= set(engine.store.catalog.chunks.ids())
        (file,) = (engine.store.path / "corrections").glob("[0-9a-f]*")
        before = file.stat().st_mtime_ns
        engine.ingest([town(TOWNS)])
        assert file.stat().st_mtime_ns == before

    def test_again_when_the_corpus_has_outgrown_it(self, engine: FusionEngine) -> None:
        engine.ingest([town(i) for i in range(TOWNS, 2 * TOWNS + 1)])
        measured = self.about(engine)
        assert measured is not None
        assert measured.chunks == 3 * (2 * TOWNS + 1)

    def test_again_when_a_chunk_of_it_is_gone(self, engine: FusionEngine) -> None:
        measured = self.about(engine)
        assert measured is not None
        gone = engine.store.catalog.chunks.records(measured.chunk_ids[:1])[measured.chunk_ids[0]]
        engine.delete([gone.chunk.document_id])
        assert self.about(engine) is None
        engine.ingest([town(i) for i in range(TOWNS, TOWNS + 2)])
        again = self.about(engine)
        assert again is not None
        assert gone.chunk.id not in again.chunk_ids

    def test_fused_kv_is_placed_corrected(self, engine: FusionEngine) -> None:
        made = self.use(engine)
        records = all_records(engine.store.catalog)[:3]
        prompt = question_prompt([record.chunk.text for record in records], "Where is it?")
        corrected = engine.load(prompt, AnswerSettings())
        plain = engine.load(prompt, AnswerSettings(corrected=False))
        assert [kv.kind for kv in corrected.kvs] == ["isolated", "fused", "fused"]
        assert [kv.kind for kv in plain.kvs] == ["fused"] * 3
        for kv, stored in list(zip(corrected.kvs, plain.kvs, strict=True))[1:]:
            assert isinstance(kv, CorrectedKV)
            keys, _ = kv.tensors(slice(None), CPU)
            there, _ = stored.tensors(slice(None), CPU)
            torch.testing.assert_close(keys[:, :, 4], there[:, :, 4] + made.keys[:, :, 4])

    def test_isolated_kv_is_not(self, engine: FusionEngine) -> None:
        self.use(engine)
        records = all_records(engine.store.catalog)[:3]
        prompt = question_prompt([record.chunk.text for record in records], "Where is it?")
        loaded = engine.load(prompt, AnswerSettings(kv="isolated"))
        assert not any(isinstance(kv, CorrectedKV) for kv in loaded.kvs)

    def test_scopes_add_nothing_to_each_other(self, engine: FusionEngine) -> None:
        """A scope's file names its own chunks only, and a scope without one is not corrected."""
        self.use(engine)
        north = [replace(town(i), id=f"north-{i}", scope="north") for i in range(TOWNS)]
        engine.ingest([*north, replace(town(9), id="south", scope="south")])
        catalog = engine.store.catalog
        corrections = Corrections(engine.store.path, catalog)
        measured = corrections.read("north")
        assert measured is not None
        scopes = {r.chunk.scope for r in catalog.chunks.records(measured.chunk_ids).values()}
        assert scopes == {"north"}
        assert corrections.read("south") is None
        south = catalog.chunks.ids([DocumentKey("south", "south")])
        texts = [record.chunk.text for record in catalog.chunks.records(south).values()]
        loaded = engine.load(question_prompt(texts, "Where?"), AnswerSettings(scopes=("south",)))
        assert not any(isinstance(kv, CorrectedKV) for kv in loaded.kvs)

    def test_what_another_scope_holds_changes_nothing(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        """The same scope beside two others: what is placed of it is the same to the last bit."""
        placed = []
        for number in (100, 200):
            engine = FusionEngine.from_pretrained(
                model_dir, store=tmp_path / str(number), chunk_tokens=48
            )
            own = [replace(town(i), scope="own") for i in range(TOWNS)]
            others = [town(i) for i in range(number, number + TOWNS)]
            engine.ingest([*own, *others])
            placed.append(whole_placed(engine, "own"))
        assert placed[0][0]  # it is corrected
        for one, other in zip(*(tensors for _, tensors in placed), strict=True):
            assert torch.equal(one, other)

    def test_nothing_is_left_of_what_was_deleted(self, model_dir: Path, tmp_path: Path) -> None:
        """Whatever was there beside: once it is gone, the rest is placed the same."""
        placed = []
        for number in (100, 200):
            engine = FusionEngine.from_pretrained(
                model_dir, store=tmp_path / str(number), chunk_tokens=48
            )
            secret = [town(i) for i in range(number, number + TOWNS)]
            engine.ingest([*(town(i) for i in range(TOWNS)), *secret])
            engine.delete([document.id for document in secret])
            engine.ingest([])
            placed.append(whole_placed(engine, ""))
        assert placed[0][0]  # it is corrected
        for one, other in zip(*(tensors for _, tensors in placed), strict=True):
            assert torch.equal(one, other)

    def test_chunks_of_a_few_tokens_are_measured_on_too(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        made = FusionEngine.from_pretrained(model_dir, store=tmp_path / "short", chunk_tokens=48)
        made.ingest([Document(id=f"{i}", text=f"{i} is it.") for i in range(2 * CHUNKS)])
        measured = self.about(made)
        assert measured is not None
        assert measured.chunk_ids

    def test_a_damaged_record_leaves_it_for_the_next_ingest(
        self, engine: FusionEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        (file,) = (engine.store.path / "corrections").glob("[0-9a-f]*")
        file.unlink()
        for record in (engine.store.path / "kv").glob("*/*.safetensors"):
            record.write_bytes(record.read_bytes()[:-1])
        with caplog.at_level(logging.WARNING):
            engine.ingest([])
        assert "left for the next ingest" in caplog.text
        assert self.about(engine) is None

    def test_where_it_cannot_be_used_the_answer_says_so(
        self, engine: FusionEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And is that of a store without it."""
        self.use(engine)
        texts = [record.chunk.text for record in all_records(engine.store.catalog)[:4]]
        prompt, settings = question_prompt(texts, "Where?"), AnswerSettings(max_tokens=4)
        before = engine.answer(prompt, settings)
        assert (before.fused_chunks, before.fallbacks) == (3, ())
        (file,) = (engine.store.path / "corrections").glob("[0-9a-f]*")
        whole, without = file.read_bytes(), set[object]()
        for damage in (deleted, *KINDS, flipped):
            file.write_bytes(whole)
            assert engine.answer(prompt, settings).fallbacks == ()
            damage(file, random.Random(0))
            after = engine.answer(prompt, settings)
            assert [fallback.used for fallback in after.fallbacks] == ["fused"] * 3, damage
            reasons = {fallback.reason for fallback in after.fallbacks}
            assert all("ext ingest measures" in reason for reason in reasons)
            assert not any(str(engine.store.path) in reason for reason in reasons)
            without.add(after.token_ids)
            assert engine.answer(prompt, replace(settings, corrected=False)).fallbacks == ()
            if file.is_dir():
                file.rmdir()
            file.unlink(missing_ok=True)
        assert without != {before.token_ids}
        assert len(without) == 1

    @pytest.mark.parametrize("place", ["corrections", "corrections/*"])
    @pytest.mark.parametrize("change", ["ingest", "delete"])
    def test_what_stands_in_its_way_is_named(
        self, engine: FusionEngine, place: str, change: str
    ) -> None:
        (path,) = set(engine.store.path.glob(place)) - {engine.store.path / "corrections" / "tmp"}
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if place == "corrections":
            path.touch()
        else:
            path.mkdir()
        changes = {"ingest": lambda: engine.ingest([]), "delete": lambda: engine.delete(["town-0"])}
        if (place, change) != ("corrections", "delete"):  # nothing is there to be deleted
            with pytest.raises(StoreError, match="corrections"):
                changes[change]()
        found = list(repair(engine.store.path))
        assert [problem.fixed for problem in found if problem.area == "corrections"] == [True]
        changes[change]()

    def test_too_few_chunks_are_not_measured_on(self, model_dir: Path, tmp_path: Path) -> None:
        small = FusionEngine.from_pretrained(model_dir, store=tmp_path / "small", chunk_tokens=48)
        small.ingest([town(0)])
        assert self.about(small) is None


def test_the_file_says_what_it_is(engine: FusionEngine) -> None:
    """Byte by byte as the module describes it."""
    engine.ingest([town(0)])
    catalog = engine.store.catalog
    ids = tuple(catalog.chunks.ids())
    Corrections(engine.store.path, catalog).write("", ScopeCorrection(correction(), ids, 3))
    (file,) = (engine.store.path / "corrections").glob("[0-9a-f]*")
    content = file.read_bytes()
    size = int.from_bytes(content[16:24], "little")
    header = json.loads(content[24 : 24 + size])
    start, stop = header["about"]["data_offsets"]
    about = json.loads(content[24 + size + start : 24 + size + stop])
    assert about == {
        "signature": catalog.info.record_signature,
        "scope": "",
        "chunk_ids": list(ids),
        "chunks": 3,
    }
    assert header["keys"]["shape"] == list(SHAPE)
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_torch_takes_by_default_changes_nothing(
    dtype: torch.dtype, model_dir: Path, tmp_path: Path
) -> None:
    """Some set it for a model of their own."""

    def answered(store: Path) -> tuple[str, int]:
        engine = FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48)
        engine.ingest([town(number) for number in range(TOWNS)])
        texts = [record.chunk.text for record in all_records(engine.store.catalog)[:6]]
        answer = engine.answer(question_prompt(texts, "Where?"), AnswerSettings(max_tokens=8))
        assert Corrections(store, engine.store.catalog).read("") is not None
        return answer.text, answer.usage.recomputed_tokens

    expected = answered(tmp_path / "as usual")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert answered(tmp_path / "changed") == expected
    finally:
        torch.set_default_dtype(before)
