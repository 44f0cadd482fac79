"""Answering through the engine: which KV stands in, what it costs, and what comes out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import (
    FusionRAGError,
    InvalidInputError,
    PromptTooLongError,
    UnknownSelectorError,
)
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.prompt.messages import Message
from fusionrag_integrations.selectors import selector_names
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.store.calibration import Calibration, write_calibration
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.kv.types import ChunkKV
from fusionrag_integrations.store.layout import CALIBRATION_FILE
from tests.conftest import town

QUESTION = "Which house stands in town number 1?"
SELECTORS = selector_names()


@pytest.fixture(scope="module")
def indexed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """Three towns, nine chunks; nobody changes this store."""
    path = tmp_path_factory.mktemp("indexed") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48)
    engine.ingest([town(number) for number in range(3)])
    return engine


@pytest.fixture
def spoilt(model_dir: Path, tmp_path: Path) -> FusionEngine:
    """Two towns in a store of the test's own, to be damaged; each request reads the files."""
    engine = FusionEngine.from_pretrained(
        model_dir, store=tmp_path / "store", chunk_tokens=48, budgets=Budgets(host=0)
    )
    engine.ingest([town(0), town(1)])
    return engine


def chunks(engine: FusionEngine, document_id: str) -> list[ChunkRecord]:
    catalog = engine.store.catalog
    return list(catalog.chunks.records(catalog.chunks.ids([DocumentKey(document_id)])).values())


def prompt(engine: FusionEngine, *document_ids: str) -> list[Message]:
    texts = [r.chunk.text for name in document_ids for r in chunks(engine, name)]
    return question_prompt(texts, QUESTION)


def ask(engine: FusionEngine, *document_ids: str, **settings: Any) -> Answer:
    settings = {"max_tokens": 12} | settings
    return engine.answer(prompt(engine, *document_ids), AnswerSettings(**settings))


def file_of(engine: FusionEngine, key: str) -> Path:
    return engine.store.path / "kv" / key[:2] / f"{key}.safetensors"


@pytest.mark.parametrize("kv", ["fused", "isolated"])
def test_recomputing_all_gives_the_tokens_of_full_attention(indexed: FusionEngine, kv: str) -> None:
    full = ask(indexed, "town-0", "town-1", kv="none")
    answer = ask(indexed, "town-0", "town-1", kv=kv, selector="all")
    assert answer.token_ids == full.token_ids
    assert answer.text == full.text
    assert answer.usage.recompute_ratio == 1.0


def test_stored_kv_is_what_answers(indexed: FusionEngine) -> None:
    """All three ways of obtaining KV show in a random model's words."""
    answers = [
        ask(indexed, "town-0", "town-1", kv=kv, selector="none").token_ids
        for kv in ("none", "isolated", "fused")
    ]
    assert len(set(answers)) == 3


def test_full_attention_uses_no_chunk(indexed: FusionEngine) -> None:
    answer = ask(indexed, "town-0", kv="none")
    assert (answer.fused_chunks, answer.isolated_chunks, answer.missed_chunks) == (0, 0, 0)
    assert answer.usage.fresh_tokens == answer.usage.prompt_tokens
    assert answer.usage.recompute_ratio == 1.0


@pytest.mark.parametrize(("kv", "counts"), [("fused", (3, 1, 0)), ("isolated", (0, 4, 0))])
def test_chunks_are_counted_by_the_kv_that_stood_in(
    indexed: FusionEngine, kv: str, counts: tuple[int, int, int]
) -> None:
    texts = [r.chunk.text for r in (*chunks(indexed, "town-0"), chunks(indexed, "town-1")[0])]
    answer = indexed.answer(question_prompt(texts, QUESTION), AnswerSettings(kv=kv, max_tokens=1))
    assert (answer.fused_chunks, answer.isolated_chunks, answer.missed_chunks) == counts


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("kv", ["fused", "isolated", "none"])
def test_usage_adds_up(indexed: FusionEngine, kv: str, selector: str) -> None:
    answer = ask(indexed, "town-0", "town-2", kv=kv, selector=selector, ratio=0.3)
    usage = answer.usage
    parts = usage.reused_tokens, usage.recomputed_tokens, usage.fresh_tokens
    assert usage.prompt_tokens == sum(parts)
    assert min(parts) >= 0
    assert usage.missed_tokens == 0
    assert usage.completion_tokens == len(answer.token_ids)


@pytest.mark.parametrize("selector", ["random", "fusionrag"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 1.0])
def test_the_ratio_is_of_the_chunk_tokens(
    indexed: FusionEngine, selector: str, ratio: float
) -> None:
    found = sum(len(r.encoded.token_ids) for r in chunks(indexed, "town-1"))
    usage = ask(indexed, "town-1", selector=selector, ratio=ratio).usage
    assert usage.reused_tokens + usage.recomputed_tokens == found
    assert usage.recomputed_tokens == int(ratio * found)
    assert usage.recompute_ratio == pytest.approx(ratio, abs=1 / found)


@pytest.mark.parametrize(("selector", "recomputed"), [("none", 0.0), ("all", 1.0)])
def test_none_and_all_go_by_their_names(
    indexed: FusionEngine, selector: str, recomputed: float
) -> None:
    assert ask(indexed, "town-1", selector=selector).usage.recompute_ratio == recomputed


def test_unknown_text_is_computed_afresh(indexed: FusionEngine) -> None:
    text = "Nobody has ever written this before. " * 6
    answers = [
        indexed.answer(text, AnswerSettings(kv=kv, max_tokens=12)) for kv in ("fused", "none")
    ]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].usage.reused_tokens == 0
    assert answers[0].usage.recompute_ratio == 1.0


def test_a_text_said_twice_is_reused_twice(indexed: FusionEngine) -> None:
    (first, *_) = chunks(indexed, "town-0")
    twice = question_prompt([first.chunk.text] * 2, QUESTION)
    answer = indexed.answer(twice, AnswerSettings(selector="none", max_tokens=1))
    assert answer.usage.reused_tokens == 2 * len(first.encoded.token_ids)
    assert (answer.fused_chunks, answer.isolated_chunks) == (1, 1)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def of_another_model(path: Path) -> None:
    kv = RecordStore(LocalKVFiles(path.parents[1]), signature_in(path), "float32").get(
        path.name.split(".")[0]
    )
    RecordStore(LocalKVFiles(path.parents[1]), "another model", "float32").put(kv.dense())


def of_another_chunk(path: Path) -> None:
    """Intact and of this model, under the right key, but with other tokens."""
    store = RecordStore(LocalKVFiles(path.parents[1]), signature_in(path), "float32")
    kv = store.get(path.name.split(".")[0]).dense()
    ids = (kv.token_ids[0] + 1, *kv.token_ids[1:])
    store.put(ChunkKV(kv.key, kv.kind, ids, kv.keys, kv.values, kv.neighbours))


def signature_in(path: Path) -> str:
    return path.read_bytes().split(b'"signature":"')[1].split(b'"')[0].decode()


def under_another_key(path: Path) -> None:
    other = next(p for p in sorted(path.parents[1].glob("??/*")) if p != path)
    shutil.copy(other, path)


DAMAGE = [
    Path.unlink,
    cut_short,
    flip_a_byte,
    of_another_model,
    of_another_chunk,
    under_another_key,
]
every_damage = pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)


@every_damage
def test_kv_that_cannot_be_used_is_computed_afresh_and_counted(
    spoilt: FusionEngine, damage: Callable[[Path], None]
) -> None:
    """With all of its KV lost, the answer is that of full attention."""
    for record in chunks(spoilt, "town-0"):
        damage(file_of(spoilt, record.fused_key))
        damage(file_of(spoilt, record.isolated_key))
    answer = ask(spoilt, "town-0")
    assert answer.token_ids == ask(spoilt, "town-0", kv="none").token_ids
    assert (answer.fused_chunks, answer.isolated_chunks, answer.missed_chunks) == (0, 0, 3)
    lost = sum(len(record.encoded.token_ids) for record in chunks(spoilt, "town-0"))
    assert answer.usage.missed_tokens == lost
    assert answer.usage.fresh_tokens == answer.usage.prompt_tokens


@every_damage
def test_isolated_kv_stands_in_for_fused_kv_that_cannot_be_used(
    spoilt: FusionEngine, damage: Callable[[Path], None]
) -> None:
    for record in chunks(spoilt, "town-0"):
        damage(file_of(spoilt, record.fused_key))
    answer = ask(spoilt, "town-0", selector="none")
    isolated = ask(spoilt, "town-0", kv="isolated", selector="none")
    assert answer.token_ids == isolated.token_ids
    assert (answer.fused_chunks, answer.isolated_chunks, answer.missed_chunks) == (0, 3, 0)
    assert answer.usage.missed_tokens == 0


def test_one_lost_chunk_is_computed_like_any_unknown_text(spoilt: FusionEngine) -> None:
    words = prompt(spoilt, "town-0", "town-1")
    settings = AnswerSettings(kv="isolated", selector="none", max_tokens=12)
    whole = spoilt.answer(words, settings)
    for record in chunks(spoilt, "town-0"):
        file_of(spoilt, record.isolated_key).unlink()
    lost = spoilt.answer(words, settings)
    spoilt.delete(["town-0"])
    unknown = spoilt.answer(words, settings)
    assert lost.token_ids == unknown.token_ids != whole.token_ids
    assert lost.usage.fresh_tokens == unknown.usage.fresh_tokens
    assert (lost.missed_chunks, unknown.missed_chunks) == (3, 0)


def test_a_miss_is_logged_with_its_reason(
    spoilt: FusionEngine, caplog: pytest.LogCaptureFixture
) -> None:
    record = chunks(spoilt, "town-0")[1]
    flip_a_byte(file_of(spoilt, record.fused_key))
    ask(spoilt, "town-0")
    (entry,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert record.chunk.id in entry
    assert "digests" in entry


def test_answering_changes_nothing_that_is_stored(spoilt: FusionEngine) -> None:
    files = {p: p.read_bytes() for p in spoilt.store.path.glob("kv/*/*")}
    first = ask(spoilt, "town-0", "town-1")
    assert ask(spoilt, "town-0", "town-1").token_ids == first.token_ids
    assert {p: p.read_bytes() for p in spoilt.store.path.glob("kv/*/*")} == files


def test_a_document_that_comes_later_is_found_too(spoilt: FusionEngine) -> None:
    assert ask(spoilt, "town-0", corrected=False).fused_chunks == 3
    spoilt.ingest([town(7)])
    assert ask(spoilt, "town-7", corrected=False).fused_chunks == 3


def test_a_handle_finds_a_text_too_short_to_be_looked_for(engine: FusionEngine) -> None:
    engine.ingest([town(0, paragraphs=2)])
    engine.ingest([type(town(0))("short", "Mira makes lamps by the sea.")])
    (record,) = chunks(engine, "short")
    words = question_prompt([record.chunk.text], QUESTION)
    assert engine.answer(words, AnswerSettings(max_tokens=1)).usage.reused_tokens == 0
    named = AnswerSettings(max_tokens=1, selector="none", handles=(record.handle,))
    assert engine.answer(words, named).usage.reused_tokens == len(record.encoded.token_ids)


def test_a_handle_to_nothing_is_passed_over(indexed: FusionEngine) -> None:
    handles = (KVHandle("gone", "00", "11"),)
    assert ask(indexed, "town-0", handles=handles, corrected=False).fused_chunks == 3


def test_pieces_join_to_the_answer(indexed: FusionEngine) -> None:
    stream = indexed.stream(prompt(indexed, "town-0"), AnswerSettings(max_tokens=20))
    with pytest.raises(FusionRAGError, match="read to the end"):
        _ = stream.answer
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.answer.text
    assert stream.answer.token_ids == ask(indexed, "town-0", max_tokens=20).token_ids


def test_a_stream_can_be_left_early(indexed: FusionEngine) -> None:
    stream = indexed.stream(prompt(indexed, "town-0"), AnswerSettings(max_tokens=20))
    next(stream)
    del stream
    assert ask(indexed, "town-0").finish_reason == "length"


def test_a_stop_string_ends_the_answer_before_it(indexed: FusionEngine) -> None:
    whole = ask(indexed, "town-0", max_tokens=20)
    stop = whole.text[6:9]
    answer = ask(indexed, "town-0", max_tokens=20, stop=(stop, "never said"))
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finish_reason == "stop"
    assert len(answer.token_ids) < 20


@pytest.mark.parametrize("kv", ["fused", "none"])
def test_a_stop_string_may_be_a_special_token(
    indexed: FusionEngine, kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that isn't the end token, and that nobody is shown."""
    special = indexed.model.tokenizer.convert_tokens_to_ids("<|user|>")
    first = ask(indexed, "town-0", kv=kv, max_tokens=1).token_ids
    generation = GenerationConfig(sequence_bias=[[[*first, special], 1e4]])
    monkeypatch.setattr(indexed.model.hf, "generation_config", generation)
    answer = ask(indexed, "town-0", kv=kv, stop=("<|user|>",))
    assert answer.token_ids == (*first, special)
    assert answer.text == indexed.model.tokenizer.decode(first)
    assert answer.finish_reason == "stop"


def test_the_longest_answer_is_as_long_as_asked(indexed: FusionEngine) -> None:
    answer = ask(indexed, "town-0", max_tokens=5)
    assert (len(answer.token_ids), answer.finish_reason) == (5, "length")


@pytest.mark.parametrize("kv", ["fused", "none"])
def test_sampling_repeats_with_its_seed(indexed: FusionEngine, kv: str) -> None:
    def draw(seed: int) -> tuple[int, ...]:
        return ask(indexed, "town-0", kv=kv, temperature=1.0, seed=seed).token_ids

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_time_to_first_token_is_the_sum_of_its_parts(indexed: FusionEngine) -> None:
    ttft = ask(indexed, "town-0").ttft
    parts = asdict(ttft)
    assert {name for name, ms in parts.items() if not ms > 0.0} == {"capture"}  # nothing is new
    assert ttft.total == pytest.approx(sum(parts.values()))


def test_only_what_was_done_takes_time(indexed: FusionEngine) -> None:
    full = asdict(ask(indexed, "town-0", kv="none").ttft)
    assert {name for name, ms in full.items() if ms} == {
        "queue",
        "encode",
        "prefill",
        "first_token",
    }
    assert ask(indexed, "town-0", selector="none").ttft.probe == 0.0


def test_a_report_is_plain_values(indexed: FusionEngine) -> None:
    report = ask(indexed, "town-0").report()
    assert report["chunks"] == {"fused": 2, "isolated": 1, "missed": 0, "captured": 0}
    assert report["ttft_ms"]["total"] > 0
    assert report["usage"]["recompute_ratio"] == pytest.approx(0.15, abs=0.01)


class TestShortPrompts:
    @pytest.fixture(scope="class")
    def measured(
        self, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Callable[[int], FusionEngine]:
        """Engines over one store whose calibration says from how many tokens on reuse pays."""
        path = tmp_path_factory.mktemp("measured")
        first = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48)
        first.ingest([town(number) for number in range(2)])
        signature = first.store.catalog.info.signature

        def opened(tokens: int) -> FusionEngine:
            calibration = Calibration(layers=(1,))
            write_calibration(path / CALIBRATION_FILE, signature, calibration, {}, {"cpu": tokens})
            return FusionEngine.from_pretrained(model_dir, store=path)

        return opened

    def test_are_computed_in_full(self, measured: Callable[[int], FusionEngine]) -> None:
        length = ask(measured(0), "town-0", kv="none").usage.prompt_tokens
        short = ask(measured(length + 1), "town-0")
        assert short.short
        assert (short.usage.reused_tokens, short.usage.recompute_ratio) == (0, 1.0)
        assert short.report()["short"] is True
        assert short.text == ask(measured(0), "town-0", kv="none").text
        assert {name for name, ms in asdict(short.ttft).items() if ms} == {
            *("queue", "match", "encode", "prefill", "first_token")
        }

    def test_longer_ones_are_not(self, measured: Callable[[int], FusionEngine]) -> None:
        length = ask(measured(0), "town-0", kv="none").usage.prompt_tokens
        for answer in (ask(measured(length), "town-0"), ask(measured(0), "town-0")):
            assert not answer.short
            assert answer.usage.reused_tokens > 0

    @pytest.mark.parametrize("kv", ["fused", "isolated", "none"])
    def test_unless_a_call_declines(self, measured: Callable[[int], FusionEngine], kv: str) -> None:
        answer = ask(measured(5000), "town-0", kv=kv, break_even=False)
        assert not answer.short
        assert (answer.usage.reused_tokens > 0) == (kv != "none")

    def test_full_attention_has_no_break_even(
        self, measured: Callable[[int], FusionEngine]
    ) -> None:
        assert not ask(measured(5000), "town-0", kv="none").short


@pytest.mark.parametrize("kv", ["fused", "none"])
def test_a_prompt_that_leaves_no_room_is_refused(indexed: FusionEngine, kv: str) -> None:
    words = "lamps " * indexed.context_window
    with pytest.raises(PromptTooLongError, match=rf"holds {indexed.context_window}"):
        indexed.answer(words, AnswerSettings(kv=kv))


@pytest.mark.parametrize("kv", ["fused", "none"])
def test_the_answer_ends_where_the_context_does(indexed: FusionEngine, kv: str) -> None:
    texts = [r.chunk.text for r in chunks(indexed, "town-0")]
    room = 3

    def length(padding: int) -> int:
        usage = indexed.answer(padded(padding), AnswerSettings(max_tokens=1)).usage
        return usage.prompt_tokens

    def padded(padding: int) -> list[Message]:
        return question_prompt([*texts, "x" * padding], QUESTION)

    padding = indexed.context_window - room - length(0)
    padding += indexed.context_window - room - length(padding)
    answer = indexed.answer(padded(padding), AnswerSettings(kv=kv, max_tokens=50))
    assert answer.usage.prompt_tokens == indexed.context_window - room
    assert (len(answer.token_ids), answer.finish_reason) == (room, "length")


@pytest.mark.parametrize("kv", ["fused", "none"])
@pytest.mark.parametrize("words", ["", "  \n", []])
def test_an_empty_prompt_is_refused(indexed: FusionEngine, kv: str, words: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"is empty|no messages"):
        indexed.answer(words, AnswerSettings(kv=kv))


@pytest.mark.parametrize("kv", ["fused", "none"])
def test_an_unknown_selector_lists_the_known(indexed: FusionEngine, kv: str) -> None:
    with pytest.raises(UnknownSelectorError, match=", ".join(SELECTORS)):
        ask(indexed, "town-0", selector="best", kv=kv)


def test_an_empty_store_answers_by_computing(engine: FusionEngine) -> None:
    answer = engine.answer("Who makes lamps?", AnswerSettings(max_tokens=2))
    assert answer.usage.fresh_tokens == answer.usage.prompt_tokens
