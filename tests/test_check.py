"""`engine.check`: against engines' own answers, steps and transformers alone; questions, verdicts,
and what an ingest will take.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from fusionrag_integrations import AnswerSettings, Document, FusionEngine
from fusionrag_integrations.check import CheckReport, CheckRow, estimate, estimate_ingest, run
from fusionrag_integrations.check.measure import (
    FULL_ATTENTION,
    MAX_TOKENS,
    PLAIN_REUSE,
    WAYS,
    deviation,
    of_question,
)
from fusionrag_integrations.check.pace import Pace, Sample, measure_pace
from fusionrag_integrations.check.questions import StoreQuestion, store_questions
from fusionrag_integrations.check.verdict import verdict
from fusionrag_integrations.demo import CHUNK_TOKENS, MODEL_DIR
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.errors import InvalidInputError, StoreError
from fusionrag_integrations.execution.placement import place_in_buffer
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.prompt import encode
from fusionrag_integrations.prompt.found import MIN_PREFIX
from fusionrag_integrations.selectors import make_selector
from fusionrag_integrations.selectors.selection import TokenSelection
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.serving.usage import TTFTBreakdown, Usage
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.kv.types import KVFormat
from tests.conftest import all_records, town
from tests.small_demo import few_documents, few_questions

QUESTIONS = 3


def few_people() -> list[Document]:
    rows = few_documents(few_questions(1), others=4)
    return [Document(row["id"], row["text"], row.get("title", "")) for row in rows]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """The bundled model over a few of its documents; nobody changes the store."""
    store = tmp_path_factory.mktemp("check") / "store"
    engine = FusionEngine.from_pretrained(MODEL_DIR, store=store, chunk_tokens=CHUNK_TOKENS)
    engine.ingest(few_people())
    return engine


@pytest.fixture(scope="module")
def report(demo: FusionEngine) -> CheckReport:
    return demo.check(QUESTIONS)


def questions_of(engine: FusionEngine, count: int = QUESTIONS) -> list[StoreQuestion]:
    return store_questions(engine.model, engine.store, count, MAX_TOKENS)


def text_of(question: StoreQuestion) -> str:
    """All that the model reads of a prompt."""
    if isinstance(question.prompt, str):
        return question.prompt
    return "\n".join(message["content"] for message in question.prompt)


def asked(question: StoreQuestion) -> str:
    """The question alone."""
    return text_of(question).split("Question: ")[1].removesuffix("\nAnswer:")


class TestQuestions:
    def test_a_title_is_asked_about_once_and_other_chunks_by_how_they_begin(
        self, engine: FusionEngine
    ) -> None:
        engine.ingest([town(0), Document(id="plain", text="What it is. A text without a title.")])
        assert [asked(question) for question in questions_of(engine, 9)] == [
            'What comes after "What it is"?',
            "What does the text say about Town 0?",
            'What comes after "Town number 0 has a paragraph 1 which tells of the river, the"?',
            'What comes after "Town number 0 has a paragraph 2 which tells of the river, the"?',
        ]

    def test_they_are_spread_over_the_store(self, engine: FusionEngine) -> None:
        engine.ingest([town(number, paragraphs=1) for number in range(8)])
        titles = [asked(question)[-7:-1] for question in questions_of(engine, 4)]
        assert titles == ["Town 0", "Town 2", "Town 4", "Town 6"]
        assert len(questions_of(engine, 99)) == 8

    def test_equal_texts_are_asked_about_once(self, engine: FusionEngine) -> None:
        text = "The same text stands in two documents."
        engine.ingest([Document(id=name, text=text) for name in "ab"])
        assert len(questions_of(engine)) == 1

    def test_what_has_nothing_in_common_with_a_question_is_in_no_prompt(
        self, engine: FusionEngine
    ) -> None:
        """A lexical embedding finds it alike in most of a store: others each time."""
        words = [f"{a}{b}" for a in "bdfg" for b in ("ale", "ipo", "onu", "ysk")]
        texts = {word: f"{word}, {word} {word}: {word}." for word in words}
        engine.ingest([Document(id=word, text=text) for word, text in texts.items()])
        for question in questions_of(engine, len(words)):
            (handle,) = question.handles
            (record,) = engine.store.catalog.chunks.records([handle.chunk_id]).values()
            assert record.chunk.document_id in asked(question)

    def test_the_document_asked_about_fills_a_prompt(self, engine: FusionEngine) -> None:
        text = "\n\n".join(f"{word} {word} {word} " * 9 for word in ("alpo", "berk", "cilo"))
        engine.ingest([Document(id="one", text=text)])
        assert {len(question.handles) for question in questions_of(engine)} == {3}

    def test_the_chunks_are_what_the_retriever_finds(self, engine: FusionEngine) -> None:
        engine.ingest([town(number) for number in range(4)])
        for question in questions_of(engine, 6):
            hits = engine.store.search(asked(question), 5)
            assert {hit.handle for hit in hits} == set(question.handles)
            assert all(hit.chunk.text in text_of(question) for hit in hits)

    def test_a_prompt_holds_chunks_of_one_scope(self, engine: FusionEngine) -> None:
        scopes = ("", "north", "south")
        engine.ingest([replace(town(i), scope=scopes[i % 3]) for i in range(6)])
        found = questions_of(engine, 18)
        assert {question.scope for question in found} == set(scopes)
        for question in found:
            records = engine.store.catalog.chunks.records(
                h.chunk_id for h in question.handles
            ).values()
            assert {record.chunk.scope for record in records} == {question.scope}
            texts = [r.chunk for r in all_records(engine.store.catalog)]
            others = [chunk for chunk in texts if chunk.scope != question.scope]
            assert not any(chunk.text in text_of(question) for chunk in others)

    def test_only_as_many_chunks_as_fit(self, engine: FusionEngine) -> None:
        engine.ingest([town(number) for number in range(4)])
        (whole,) = questions_of(engine, 1)
        tokens = len(encode(engine.model.tokenizer, whole.prompt).token_ids)
        engine.model.context_window = tokens + MAX_TOKENS
        assert questions_of(engine, 1) == [whole]
        engine.model.context_window -= 1
        (shorter,) = questions_of(engine, 1)
        assert len(shorter.handles) == len(whole.handles) - 1 == 4
        engine.model.context_window = 60
        with pytest.raises(InvalidInputError, match="holds 60 tokens: too few for one chunk"):
            questions_of(engine, 1)

    @pytest.mark.parametrize(
        "text",
        [
            "A first sentence that goes on until it is longer than what is quoted of it. End.",
            "这是一个没有空格的很长的句子" * 9,
            "# A heading\n\nand a text below it, which is long enough to be found in a prompt.",
            "A short text, all of which is one sentence.",
            "... !",
        ],
    )
    def test_a_quoted_chunk_is_not_taken_for_the_chunk(
        self, engine: FusionEngine, text: str
    ) -> None:
        """Not even where the retriever finds others."""
        engine.ingest([Document(id="quoted", text=text)])
        question = questions_of(engine)[0]
        quote = asked(question).split('"')[1]
        assert quote
        assert text.startswith(quote)
        assert len(quote) < MIN_PREFIX
        loaded = engine.load(f"Some other context.\n\nQuestion: {asked(question)}\nAnswer:")
        assert not loaded.prompt.spans

    def test_an_empty_store(self, engine: FusionEngine) -> None:
        with pytest.raises(InvalidInputError, match="holds no chunks; index documents first"):
            engine.check()

    def test_no_questions(self, engine: FusionEngine) -> None:
        with pytest.raises(InvalidInputError, match="questions is 0; give a whole number from 1"):
            engine.check(0)
        with pytest.raises(InvalidInputError, match=r"questions is 2\.5; give a whole number"):
            engine.check(2.5)  # type: ignore[arg-type]

    def test_without_a_chat_template(
        self, engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine.model.tokenizer, "chat_template", None)
        engine.ingest([town(0)])
        (question,) = questions_of(engine, 1)
        assert isinstance(question.prompt, str)
        engine.answer(question.prompt, AnswerSettings(max_tokens=1))


class TestTheRows:
    def test_plain_reuse_first_then_fused_kv_by_ratio(self, report: CheckReport) -> None:
        points = [(row.kv, row.ratio) for row in report.rows]
        assert points == [("isolated", 0.0), ("fused", 0.0), ("fused", 0.05), ("fused", 0.15)]
        assert report.questions == QUESTIONS
        assert report.rows[0].recovered == 0.0
        assert all(row.speedup > 0.0 for row in report.rows)
        for row in report.rows:
            low, high = row.equal_interval
            assert 0.0 <= low <= row.equal <= high <= 1.0
            assert row.recovered is not None
            if row.recovered_interval:
                low, high = row.recovered_interval
                assert low <= row.recovered <= high
        assert report.rows[-1].recovered_interval

    def test_equal_answers_are_those_of_the_engine(
        self, demo: FusionEngine, report: CheckReport
    ) -> None:
        for way, row in zip(WAYS, report.rows, strict=True):
            equal = []
            for question in questions_of(demo):
                own, full = (
                    demo.answer(
                        question.prompt,
                        replace(
                            of_question(settings, question),
                            max_tokens=MAX_TOKENS,
                            repetition_penalty=1.0,
                        ),
                    )
                    for settings in (way, FULL_ATTENTION)
                )
                equal.append(own.token_ids == full.token_ids)
            assert row.equal == pytest.approx(sum(equal) / QUESTIONS), way

    def test_divergence_and_agreement_are_those_of_steps(
        self, demo: FusionEngine, report: CheckReport
    ) -> None:
        """Full attention by transformers alone; each way token by token."""
        divergence = dict.fromkeys(WAYS, 0.0)
        agreed = dict.fromkeys(WAYS, 0)
        tokens = 0
        for question in questions_of(demo):
            plain = AnswerSettings(kv="none", max_tokens=MAX_TOKENS, repetition_penalty=1.0)
            answer = demo.answer(question.prompt, plain).token_ids
            tokens += len(answer)
            for way in WAYS:
                loaded = demo.load(question.prompt, of_question(way, question))
                prompt = loaded.prompt
                ids = torch.tensor([[*prompt.token_ids, *answer[:-1]]])
                with torch.inference_mode():
                    full = demo.model.hf(ids).logits[0, len(prompt) - 1 :].double()
                placed = PlacedPrompt(
                    demo.executor,
                    prompt,
                    place_in_buffer(demo.executor, prompt, loaded.kvs, len(prompt) + len(answer)),
                    corrected=way.corrected,
                )
                selector = make_selector(way.selector, way.ratio, demo.calibration)
                warm = placed.recompute(selector.select(prompt, placed))
                step = demo.executor.appender(warm.kv, len(prompt))
                own = torch.stack([warm.logits[0], *map(step, answer[:-1])]).double()
                agreed[way] += int((own.argmax(1) == torch.tensor(answer)).sum())
                p, q = full.softmax(1), own.softmax(1)
                nats = (p * (p / q).log()).sum(1)
                counts = new_tokens(demo.model.tokenizer, answer, asked(question))
                divergence[way] += float(nats[counts].sum())
        for way, row in zip(WAYS, report.rows, strict=True):
            assert row.agreement == pytest.approx(agreed[way] / tokens), way
            kept = 1.0 - divergence[way] / divergence[PLAIN_REUSE]
            assert row.recovered == pytest.approx(kept, abs=1e-3), way

    def test_speedups_are_of_answers_that_take_turns(
        self, demo: FusionEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each request takes as many milliseconds as its number, the warm-up's apart."""
        calls: list[AnswerSettings] = []

        def counted_answer(engine: FusionEngine, prompt: Any, settings: AnswerSettings) -> Answer:
            calls.append(settings)
            ttft = TTFTBreakdown(prefill=float(len(calls)))
            return Answer("", (), "length", Usage(1, 0, 0, 1, 0, 0, 1), ttft)

        monkeypatch.setattr(FusionEngine, "answer", counted_answer)
        monkeypatch.setattr(run, "TIMED", 2)
        found = demo.check(QUESTIONS)
        ways = (FULL_ATTENTION, *WAYS)
        assert len(calls) == len(ways) * (2 + 1)
        assert all(call.max_tokens == 1 and not call.break_even for call in calls)
        asked_of = [questions_of(demo)[number].handles for number in (0, 0, 2)]
        assert [call.handles for call in calls[:: len(ways)]] == asked_of
        names = [(way.kv, way.selector, way.ratio) for way in ways]
        ratios: dict[Any, list[float]] = {name: [] for name in names}
        for turn in range(2):
            first = len(ways) * (turn + 1)
            round_ = [(c.kv, c.selector, c.ratio) for c in calls[first : first + len(ways)]]
            assert round_ == names[turn:] + names[:turn]
            ms = {name: first + place + 1.0 for place, name in enumerate(round_)}
            for name in names:
                ratios[name].append(ms[names[0]] / ms[name])
        assert [row.speedup for row in found.rows] == [median(ratios[n]) for n in names[1:]]

    def test_where_all_is_recomputed_nothing_is_lost_and_nothing_recovered(
        self, demo: FusionEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        everything = partial(make_selector, "all")
        monkeypatch.setattr(
            "fusionrag_integrations.check.measure.make_selector",
            lambda name, *given: everything(*given),
        )
        for row in demo.check(1).rows:
            assert row.equal == row.agreement == 1.0
            assert row.equal_interval == (1.0, 1.0)
            assert row.recovered is None

    def test_nothing_changes(self, demo: FusionEngine, report: CheckReport) -> None:
        before = {p: p.stat().st_mtime_ns for p in (demo.store.path / "kv").rglob("*")}
        again = demo.check(QUESTIONS)
        assert {p: p.stat().st_mtime_ns for p in (demo.store.path / "kv").rglob("*")} == before
        assert [replace(row, speedup=1.0) for row in again.rows] == [
            replace(row, speedup=1.0) for row in report.rows
        ]


def new_tokens(tokenizer: Any, answer: Sequence[int], question: str) -> list[int]:
    """Tokens with a letter of a word that isn't asked about, and those without letters."""
    spelled = [
        tokenizer.decode(answer[:count], skip_special_tokens=True)
        for count in range(len(answer) + 1)
    ]
    words = re.findall(r"\w+", question.lower())
    old = {
        at
        for word in re.finditer(r"\w+", spelled[-1])
        if word[0].lower() in words
        for at in range(*word.span())
    }
    letters = [
        [at for at in range(len(before), len(after)) if after[at].isalnum()]
        for before, after in pairwise(spelled)
    ]
    return [i for i, own in enumerate(letters) if not own or not old.issuperset(own)]


def forgetful(recompute: Callable[..., Any], every: int) -> Callable[..., Any]:
    """Leaves out some of the tokens that are to be recomputed."""

    def less(placed: PlacedPrompt, selection: TokenSelection, answer: Sequence[int] = ()) -> Any:
        kept = [p for i, p in enumerate(selection.positions) if i % every]
        return recompute(placed, TokenSelection(tuple(kept)), answer)

    return less


class TestExactness:
    def test_recomputing_everything_is_exact(self, report: CheckReport) -> None:
        assert report.exact is True
        assert report.deviation is not None
        assert 0.0 < report.deviation < 1e-5

    def test_a_recomputation_that_forgets_tokens_is_not(
        self, demo: FusionEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(PlacedPrompt, "recompute", forgetful(PlacedPrompt.recompute, 10))
        found = demo.check(1)
        assert found.exact is False
        assert found.verdict.startswith("Not exact")

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_in_half_precision(
        self, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = FusionEngine.from_pretrained(
            MODEL_DIR, store=tmp_path, dtype=dtype, chunk_tokens=CHUNK_TOKENS
        )
        engine.ingest(few_people()[:3])
        assert engine.check(3).exact is True
        monkeypatch.setattr(PlacedPrompt, "recompute", forgetful(PlacedPrompt.recompute, 1))
        assert engine.check(3).exact is False

    def test_deviation_is_relative_to_the_spread_and_of_the_worst_row(self) -> None:
        logits = torch.tensor([[0.0, 2.0, 4.0], [0.0, 4.0, 8.0]])
        off = logits + torch.tensor([[9.0, 9.0, 9.0], [1.0, 0.0, -1.0]])
        assert deviation(logits, logits + 5.0) == pytest.approx(0.0, abs=1e-6)
        assert deviation(off, logits) == pytest.approx(0.25)


class TestSmallAndOddStores:
    def test_a_single_chunk(self, engine: FusionEngine) -> None:
        engine.ingest([Document(id="one", text="A single chunk that tells of a bridge in Oder.")])
        found = engine.check()
        assert (found.exact, found.questions) == (True, 1)
        assert "Only 1 question was asked, which shows little" in found.verdict
        assert found.disk is not None
        assert found.disk.chunks == 1

    def test_chunks_in_scopes_and_without_titles(self, engine: FusionEngine) -> None:
        texts = [replace(town(i), scope=str(i % 2), title="") for i in range(3)]
        engine.ingest(texts)
        found = engine.check(2)
        assert (found.exact, found.questions) == (True, 2)
        assert found.rows[0].speedup > 0.0

    def test_chunks_without_kv(self, model_dir: Path, tmp_path: Path) -> None:
        engine = FusionEngine.from_pretrained(
            model_dir, store=tmp_path, chunk_tokens=48, budgets=Budgets(disk=0)
        )
        engine.ingest([town(0)])
        with pytest.raises(StoreError, match=r"No KV of the store at .* could be used"):
            engine.check()

    def test_chunks_whose_kv_is_damaged_are_counted(
        self, engine: FusionEngine, report: CheckReport
    ) -> None:
        assert report.without_kv == 0
        engine.ingest([town(number) for number in range(3)])
        for record in all_records(engine.store.catalog)[:2]:
            for key in (record.isolated_key, record.fused_key):
                (file,) = (engine.store.path / "kv").rglob(f"{key}*")
                file.write_bytes(b"")
        found = FusionEngine.open(engine.model, engine.store.path).check(9)
        assert found.without_kv == 2
        assert "KV of 2 of the chunks is missing or damaged" in found.verdict

    def test_what_kv_takes_on_disk(self, report: CheckReport, demo: FusionEngine) -> None:
        files = [p for p in (demo.store.path / "kv").rglob("*.safetensors") if p.is_file()]
        records = all_records(demo.store.catalog)
        disk = report.disk
        assert disk is not None
        assert disk.bytes == sum(file.stat().st_size for file in files)
        assert disk.chunks == len(records)
        assert disk.tokens == sum(len(record.encoded.token_ids) for record in records)
        assert disk.bytes_per_chunk == round(disk.bytes / disk.chunks)
        assert disk.bytes_per_token == round(disk.bytes / disk.tokens)


PLAIN = CheckRow("isolated", 0.0, 0.4, (0.2, 0.6), 0.0, (0.0, 0.0), 0.8, 9.0)


def fused(ratio: float, equal: float, speedup: float, recovered: float | None = 0.9) -> CheckRow:
    return CheckRow("fused", ratio, equal, (equal - 0.1, equal), recovered, None, 0.97, speedup)


def said(
    *rows: CheckRow,
    exact: bool = True,
    questions: int = 20,
    tokens: int = 4000,
    plain: CheckRow = PLAIN,
    without_kv: int = 0,
) -> str:
    return verdict(exact, (plain, *rows), questions, tokens, without_kv)


class TestTheVerdict:
    worse = fused(0.0, 0.5, 8.0, 0.5)

    def test_the_default_is_good_and_nothing_else_is(self) -> None:
        assert said(self.worse, fused(0.05, 0.8, 6.0), fused(0.15, 0.96, 4.1)) == (
            "With ratio=0.15, 96% (86 to 96%) of answers equal full attention's, 40% with plain "
            "reuse, and the first token comes 4.1 times sooner: keep the default."
        )

    def test_a_lower_ratio_is_as_good(self) -> None:
        assert said(self.worse, fused(0.05, 0.96, 6.0), fused(0.15, 0.95, 4.1)) == (
            "ratio=0.05 is as good here and quicker: 96% (86 to 96%) of answers equal full "
            "attention's, and the first token comes 6.0 times sooner, not 4.1. Set ratio=0.05."
        )

    def test_the_lowest_that_is_as_good(self) -> None:
        rows = fused(0.0, 0.95, 8.0), fused(0.05, 0.96, 6.0), fused(0.15, 0.95, 4.1)
        assert "Set ratio=0." in said(*rows)

    def test_as_many_answers_but_less_recovered_is_not_as_good(self) -> None:
        rows = self.worse, fused(0.05, 0.95, 6.0, recovered=0.84), fused(0.15, 0.95, 4.1)
        assert "keep the default" in said(*rows)
        rows = self.worse, fused(0.05, 0.95, 6.0, recovered=0.86), fused(0.15, 0.95, 4.1)
        assert "Set ratio=0.05." in said(*rows)

    def test_as_good_but_hardly_quicker(self) -> None:
        rows = self.worse, fused(0.05, 0.95, 4.4), fused(0.15, 0.95, 4.1)
        assert "keep the default" in said(*rows)

    def test_nothing_to_recover(self) -> None:
        rows = [fused(ratio, 1.0, 5.0 - ratio, None) for ratio in (0.0, 0.05, 0.15)]
        assert "keep the default" in said(*rows)

    def test_too_few_answers_are_equal(self) -> None:
        assert said(self.worse, fused(0.05, 0.5, 6.0), fused(0.15, 0.6, 4.1)) == (
            "At 15% 60% (50 to 60%) of answers equal full attention's, 40% with plain reuse, and "
            "of their tokens 97% are the same. Another wording isn't a worse answer: `fusionrag "
            "bench quality` tells, with questions whose answers you know. Set kv='none' where "
            "every answer must be the same, else keep the default."
        )

    def test_prompts_are_too_short(self) -> None:
        rows = fused(0.0, 0.5, 1.2), fused(0.05, 0.8, 1.1), fused(0.15, 0.95, 1.04)
        assert said(*rows, tokens=1234) == (
            "Prompts here are too short to gain: at 1,234 tokens the first token comes 1.04 "
            "times as soon with ratio=0.15. Set kv='none', or retrieve more chunks."
        )

    def test_too_short_but_for_a_lower_ratio_that_is_as_good(self) -> None:
        rows = fused(0.0, 0.95, 1.5), fused(0.05, 0.8, 1.1), fused(0.15, 0.95, 1.04)
        assert "Set ratio=0." in said(*rows)

    def test_not_exact(self) -> None:
        told = said(self.worse, fused(0.05, 1.0, 6.0), fused(0.15, 1.0, 4.1), exact=False)
        assert told.startswith("Not exact")
        assert "Set kv='none'" in told

    def test_what_is_lost_in_distributions_alone_keeps_no_lower_ratio_back(self) -> None:
        """Where all answers and all tokens are the same, R is of next to nothing."""
        same = replace(fused(0.0, 1.0, 8.0, -20.9), agreement=1.0)
        assert "Set ratio=0." in said(
            same, fused(0.05, 1.0, 6.0, -0.4), fused(0.15, 1.0, 4.1, -5.4)
        )

    def test_plain_reuse_is_as_good(self) -> None:
        rows = fused(0.0, 0.9, 4.2), fused(0.05, 0.9, 4.2), fused(0.15, 0.92, 4.1)
        close = replace(PLAIN, equal=0.92)
        assert said(*rows, plain=close).endswith(
            "times sooner: keep the default. Plain reuse keeps as many answers here, 92%: these "
            "questions hardly show what fused KV and recompute are for."
        )
        assert "Plain reuse" not in said(*rows, plain=replace(PLAIN, equal=0.91))

    def test_missing_kv(self) -> None:
        rows = self.worse, fused(0.05, 0.8, 6.0), fused(0.15, 0.96, 4.1)
        assert "KV of 3 of the chunks is missing or damaged" in said(*rows, without_kv=3)

    def test_few_questions(self) -> None:
        rows = self.worse, fused(0.05, 0.8, 6.0), fused(0.15, 0.96, 4.1)
        assert "Only 9 questions were asked, which shows little" in said(*rows, questions=9)
        assert "shows little" not in said(*rows, questions=10)


def estimated(engine: FusionEngine, documents: list[Document]) -> Any:
    info = engine.store.catalog.info
    return estimate_ingest(
        engine.model,
        documents,
        info.chunk_tokens,
        info.kv_format,
        lambda stage, done, total: None,
    )


class TestTheEstimate:
    @pytest.mark.parametrize("kv_format", ["float32", "bfloat16", "int8", "int4"])
    def test_is_what_ingest_writes(
        self, model_dir: Path, tmp_path: Path, kv_format: KVFormat
    ) -> None:
        """Texts of different lengths, some of them twice, in scopes, one of which has one chunk."""
        engine = FusionEngine.from_pretrained(
            model_dir, store=tmp_path, chunk_tokens=48, kv_format=kv_format
        )
        documents = [
            *(town(number, paragraphs=1 + number % 4) for number in range(9)),
            replace(town(0, paragraphs=1), id="copy"),
            replace(town(4), id="other", scope="north"),
            Document(id="alone", text="Nobody stands beside it.", scope="south"),
            Document(id="empty", text=" "),
        ]
        found = estimated(engine, documents)
        assert not (tmp_path / "kv").exists()
        engine.ingest(documents)
        counts = engine.store.catalog.counts()
        assert (found.documents, found.chunks) == (13, counts.chunks)
        assert (found.tokens, found.kv_format) == (counts.tokens, kv_format)
        written = sum(p.stat().st_size for p in (tmp_path / "kv").rglob("*.safetensors"))
        assert found.bytes == pytest.approx(written, rel=0.03)

    def test_of_the_demos_own(self, demo: FusionEngine, report: CheckReport) -> None:
        found = estimated(demo, few_people())
        assert report.disk is not None
        assert found.bytes == pytest.approx(report.disk.bytes, rel=0.03)

    def test_is_in_the_report(self, demo: FusionEngine) -> None:
        found = demo.check(1, estimate=few_people()).estimate
        assert found is not None
        assert found.chunks == demo.store.catalog.counts().chunks

    def test_seconds_are_by_token(
        self, engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(estimate, "measure_pace", lambda *given: Pace(0.5, 2.0))
        alone = Document(id="alone", text="Nobody stands beside it.", scope="south")
        documents = [town(0), replace(town(0), id="copy"), alone]
        found = estimated(engine, documents)
        single = estimated(engine, [alone]).tokens
        town_tokens = (found.tokens - single) / 2
        # Equal texts have one isolated record, and fused ones of their own.
        assert found.seconds == 0.5 * (town_tokens + single) + 2.0 * 2 * town_tokens

    def test_the_pace_is_that_of_a_second_pass(
        self, engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a clock that the passes themselves move on."""
        now, passes = [0.0], []

        def slow(name: str, first: float, later: float) -> Any:
            work = measure_pace.__globals__[name]

            def timed(*given: Any) -> Any:
                now[0] += later if name in passes else first
                passes.append(name)
                return work(*given)

            return timed

        module = "fusionrag_integrations.check.pace."
        monkeypatch.setattr(module + "perf_counter", lambda: now[0])
        monkeypatch.setattr(module + "prefill_chunks", slow("prefill_chunks", 90.0, 3.0))
        monkeypatch.setattr(module + "fuse_chunks", slow("fuse_chunks", 90.0, 5.0))
        sample = Sample()
        for record in records_of(engine, [town(number) for number in range(9)]):
            sample.add(record)
        pace = measure_pace(engine.executor, sample.records, lambda stage, done, total: None)
        timed, tokens = 0, 0
        while tokens < 512:
            tokens += len(sample.records[timed].encoded.token_ids)
            timed += 1
        assert pace == Pace(3.0 / tokens, 5.0 / tokens)

    def test_a_sample_is_of_one_scope_without_repeats_and_ends(self, engine: FusionEngine) -> None:
        sample = Sample()
        documents = [town(0), replace(town(0), id="copy"), replace(town(1), scope="north")]
        documents += [town(number) for number in range(2, 40)]
        found = list(records_of(engine, documents))
        for record in found:
            sample.add(record)
        assert {record.chunk.scope for record in sample.records} == {""}
        texts = [record.chunk.text for record in sample.records]
        assert len(set(texts)) == len(texts) < 20

    def test_what_is_no_document(self, engine: FusionEngine) -> None:
        with pytest.raises(InvalidInputError, match="in a list; got 'notes'"):
            estimated(engine, ["notes"])  # type: ignore[list-item]
        with pytest.raises(InvalidInputError, match="hold no text"):
            estimated(engine, [Document(id="empty", text="")])


def records_of(engine: FusionEngine, documents: list[Document]) -> Iterator[ChunkRecord]:
    """As an ingest would make them; nothing is kept."""
    from fusionrag_integrations.documents.chunking import Chunker
    from fusionrag_integrations.documents.keys import isolated_key
    from fusionrag_integrations.prompt import encode_chunk

    for document in documents:
        for chunk in Chunker(48).split(document):
            encoded = encode_chunk(engine.model.tokenizer, chunk)
            yield ChunkRecord(encoded, isolated_key(encoded.token_ids, "", chunk.scope))
