"""Every question under every strategy: what is asked, what is kept, and how a run goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.answer import Answer
from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.quality import Measurement, run_quality
from fusionrag_integrations.bench.strategies import Strategy, make_strategies
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.types import AnswerSettings, TTFTBreakdown, Usage
from tests.conftest import all_records, town

pytest.importorskip("rouge_score")

LAYERS = 4
NAMES = ("full_reuse", "random", "epic")
STRATEGIES = make_strategies(NAMES, (0.0, 0.5, 1.0), ("isolated", "fused"))
RUNS = 1 + 2 * (1 + 2 + 1)  # full attention; for each KV nothing, two selectors, everything
KINDS = ("single", "single", "bridge", "single", "bridge")


def nothing(done: int, total: int) -> None:
    pass


def questions(kinds: tuple[str, ...] = KINDS) -> list[Question]:
    """Their prompts are their numbers."""
    return [
        Question(kind, f"Which river is number {i}?", ("Tolen", "the old Tolen"), ("text",), str(i))
        for i, kind in enumerate(kinds)
    ]


@dataclass
class FakeEngine:
    """Answers by number and settings, and notes what it was asked."""

    asked: list[tuple[str, AnswerSettings]] = field(default_factory=list)
    text: Callable[[str, AnswerSettings], str] = lambda prompt, settings: (
        f" {prompt} {settings.kv} {settings.selector}\n"
    )
    model = SimpleNamespace(num_layers=LAYERS)

    def answer(self, prompt: str, settings: AnswerSettings) -> Answer:
        self.asked.append((prompt, settings))
        work = 40 if settings.kv == "none" else 7 + int(prompt)
        usage = Usage(10, 3, 2 if settings.selector != "none" else 0, 5, 0, 4, work)
        ttft = TTFTBreakdown(match=1.0, prefill=float(len(self.asked)))
        return Answer(self.text(prompt, settings), (5,), "stop", usage, ttft)


def run(engine: Any, log: Path, **changes: Any) -> list[Measurement]:
    plain = {
        "questions": questions(),
        "strategies": STRATEGIES,
        "identity": {"model": "fake", "seed": 0},
        "max_tokens": 6,
        "inspected": 0,
        "judge": None,
        "progress": nothing,
    } | changes
    return run_quality(engine, plain.pop("questions"), plain.pop("strategies"), log, **plain)


def untimed(measurements: list[Measurement]) -> list[Measurement]:
    return [replace(m, ttft_ms=0.0) for m in measurements]


def behind_warm_up(engine: FakeEngine) -> list[tuple[str, AnswerSettings]]:
    return engine.asked[1:]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


class TestMeasurements:
    def test_all_strategies_of_a_question_then_the_next(self, log: Path) -> None:
        found = run(FakeEngine(), log)
        assert [(m.question, m.strategy) for m in found] == [
            (number, strategy) for number in range(len(KINDS)) for strategy in STRATEGIES
        ]
        assert [m.kind for m in found[:: len(STRATEGIES)]] == list(KINDS)

    def test_what_is_measured(self, log: Path) -> None:
        def text(prompt: str, settings: AnswerSettings) -> str:
            return {"none": " The Tolen.\n", "isolated": "old river"}.get(settings.kv, "none such")

        engine = FakeEngine(text=text)
        found = {(m.question, m.strategy): m for m in run(engine, log)}
        full = found[2, Strategy("full_attention", "none", 1.0)]
        assert (full.answer, full.em, full.f1) == ("The Tolen.", 1.0, 1.0)
        assert full.rouge1 == pytest.approx(0.8)  # articles count: "the tolen", "the old tolen"
        assert (full.recomputed, full.work) == (0, 1.0)
        reuse = found[2, Strategy("full_reuse", "isolated", 0.0)]
        assert (reuse.answer, reuse.em, reuse.f1) == ("old river", 0.0, 0.5)
        assert reuse.work == pytest.approx((7 + 2) / (10 * LAYERS))
        some = found[2, Strategy("epic", "fused", 0.5)]
        assert (some.f1, some.rouge1, some.recomputed) == (0.0, 0.0, 2)
        assert (some.judged, some.inspection) == (None, None)

    def test_the_time_is_the_calls_own(self, log: Path) -> None:
        engine = FakeEngine()
        found = run(engine, log)
        when = dict(zip(engine.asked, range(1, 1 + len(engine.asked)), strict=True))
        for m in found:
            assert m.ttft_ms == 1.0 + when[str(m.question), m.strategy.settings(6)]

    def test_the_answers_have_the_length_asked_for(self, log: Path) -> None:
        engine = FakeEngine()
        run(engine, log, max_tokens=9)
        assert {settings.max_tokens for _, settings in engine.asked} == {9}


class TestWhoIsAsked:
    def test_equal_settings_are_answered_once_and_shared(self, log: Path) -> None:
        engine = FakeEngine()
        found = run(engine, log)
        counts = Counter(behind_warm_up(engine))
        assert set(counts.values()) == {1}
        assert len(counts) == RUNS * len(KINDS) < len(found)
        of = {(m.question, m.strategy): m for m in found}
        for kv in ("isolated", "fused"):
            for same in (
                [
                    Strategy("full_reuse", kv, 0.0),
                    Strategy("random", kv, 0.0),
                    Strategy("epic", kv, 0.0),
                ],
                [Strategy("random", kv, 1.0), Strategy("epic", kv, 1.0)],
            ):
                shared = [replace(of[1, s], strategy=same[0]) for s in same]
                assert shared == [shared[0]] * len(same)  # the time too

    def test_the_first_call_warms_up(self, log: Path) -> None:
        engine = FakeEngine()
        run(engine, log)
        assert engine.asked[0] == ("0", STRATEGIES[0].settings(6))

    def test_strategies_take_turns(self, log: Path) -> None:
        engine = FakeEngine()
        kinds = ("single",) * (2 * RUNS)
        run(engine, log, questions=questions(kinds))
        rounds: dict[str, list[AnswerSettings]] = {}
        for prompt, settings in behind_warm_up(engine):
            rounds.setdefault(prompt, []).append(settings)
        assert list(rounds) == [str(i) for i in range(2 * RUNS)]
        for place in range(RUNS):  # each strategy is at each place equally often
            assert set(Counter(r[place] for r in rounds.values()).values()) == {2}
        first = rounds["0"]
        for order in rounds.values():  # and always behind the same one
            start = first.index(order[0])
            assert order == first[start:] + first[:start]

    def test_progress_goes_to_the_end(self, log: Path) -> None:
        seen: list[tuple[int, int]] = []
        run(FakeEngine(), log, progress=lambda *at: seen.append(at))
        assert seen == [(i, 5) for i in range(6)]


def test_the_judge_gets_the_question_and_the_stripped_answer(log: Path) -> None:
    judged: list[tuple[Question, str]] = []

    def judge(question: Question, answer: str) -> float:
        judged.append((question, answer))
        return len(answer) / 100

    found = run(FakeEngine(), log, judge=judge)
    assert {(question.prompt, answer) for question, answer in judged} == {
        (str(m.question), f"{m.question} {s.kv} {s.selector}")
        for m in found
        for s in [m.strategy.settings(6)]
    }
    assert [m.judged for m in found] == [len(m.answer) / 100 for m in found]
    assert run(FakeEngine(), log, judge=None) == found  # the log keeps them


class Interrupt:
    """Raises where a question begins, or where the engine is asked for the nth time."""

    def __init__(self, question: int | None = None, call: int | None = None) -> None:
        self.question, self.call = question, call

    def progress(self, done: int, total: int) -> None:
        if done == self.question:
            raise KeyboardInterrupt

    def engine(self) -> FakeEngine:
        engine = FakeEngine()

        def text(prompt: str, settings: AnswerSettings) -> str:
            if len(engine.asked) == self.call:
                raise KeyboardInterrupt
            return f" {prompt} {settings.kv} {settings.selector}\n"

        engine.text = text
        return engine


class TestGoingOn:
    @pytest.mark.parametrize("question", range(len(KINDS) + 1))
    def test_no_question_is_asked_twice(self, log: Path, tmp_path: Path, question: int) -> None:
        whole = run(FakeEngine(), tmp_path / "whole.jsonl")
        stop, first, second = Interrupt(question), FakeEngine(), FakeEngine()
        with pytest.raises(KeyboardInterrupt):
            run(first, log, progress=stop.progress)
        found = run(second, log)
        assert untimed(found) == untimed(whole)
        asked = Counter([*behind_warm_up(first), *behind_warm_up(second)])
        assert set(asked.values()) == {1}
        assert len(asked) == RUNS * len(KINDS)
        assert len(behind_warm_up(first)) == RUNS * min(question, len(KINDS))

    def test_a_question_that_was_cut_short_is_asked_anew(self, log: Path, tmp_path: Path) -> None:
        whole = run(FakeEngine(), tmp_path / "whole.jsonl")
        with pytest.raises(KeyboardInterrupt):
            run(Interrupt(call=1 + RUNS + 4).engine(), log)  # in the second question
        second = FakeEngine()
        assert untimed(run(second, log)) == untimed(whole)
        assert {prompt for prompt, _ in behind_warm_up(second)} == {"1", "2", "3", "4"}

    def test_times_are_those_of_the_first_run(self, log: Path) -> None:
        found = run(FakeEngine(), log)
        again = FakeEngine()
        assert run(again, log) == found
        assert behind_warm_up(again) == []

    @pytest.mark.parametrize(
        ("cut", "lost"),
        [
            (1, set()),  # the last line feed
            (2, {"4"}),
            (60, {"4"}),
            ("line", {"4"}),
            ("two lines and a half", {"4"}),
            ("question", {"4"}),
            ("question and a half line", {"3", "4"}),
        ],
    )
    def test_what_was_cut_goes_with_its_question(
        self, log: Path, cut: int | str, lost: set[str]
    ) -> None:
        found = run(FakeEngine(), log)
        text = log.read_text()
        lines = text.splitlines(keepends=True)
        kept = {
            "line": "".join(lines[:-1]),
            "two lines and a half": "".join(lines[:-3]) + lines[-3][:40],
            "question": "".join(lines[: -len(STRATEGIES)]),
            "question and a half line": "".join(lines[: -len(STRATEGIES)])[:-40],
        }
        log.write_text(text[:-cut] if isinstance(cut, int) else kept[cut])
        again = FakeEngine()
        assert untimed(run(again, log)) == untimed(found)
        assert {prompt for prompt, _ in behind_warm_up(again)} == lost
        head, *rows = map(json.loads, log.read_text().splitlines())
        assert (head["model"], len(rows)) == ("fake", len(STRATEGIES) * len(KINDS))

    def test_an_empty_log_is_begun(self, log: Path) -> None:
        log.touch()
        assert len(run(FakeEngine(), log)) == len(STRATEGIES) * len(KINDS)

    @pytest.mark.parametrize(
        "changes",
        [
            {"identity": {"model": "fake", "seed": 1}},
            {"identity": {"model": "fake", "seed": 0, "neighbours": "wrong"}},
            {"strategies": STRATEGIES[:-1]},
            {"strategies": make_strategies(NAMES, (0.0, 0.4, 1.0), ("isolated", "fused"))},
        ],
    )
    def test_a_log_of_another_run_is_refused_and_kept(
        self, log: Path, changes: dict[str, Any]
    ) -> None:
        run(FakeEngine(), log)
        before, engine = log.read_text(), FakeEngine()
        with pytest.raises(InvalidInputError) as refused:
            run(engine, log, **changes)
        assert str(log) in str(refused.value)
        assert engine.asked == []
        assert log.read_text() == before


@pytest.fixture(scope="module")
def indexed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    path = tmp_path_factory.mktemp("quality") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48)
    engine.ingest([town(0), town(1)])
    return engine


class TestWithAModel:
    strategies = make_strategies(
        ("prefix_cache", "random", "fusionrag"), (0.2,), ("isolated", "fused")
    )

    def ask(self, engine: FusionEngine, log: Path, **changes: Any) -> list[Measurement]:
        texts = [record.chunk.text for record in all_records(engine.corpus.catalog)]
        asked = [
            Question(kind, q, ("the river",), tuple(context), question_prompt(context, q))
            for kind, q, context in (
                ("house", "Which house stands there?", texts[:3]),
                ("river", "What is told of the river?", texts[2:5]),
                ("river", "And of the bridge?", texts[1:4]),
            )
        ]
        settings = {"questions": asked, "strategies": self.strategies, "inspected": 1}
        return run(engine, log, **(settings | changes))

    def test_goes_on_as_if_nothing_had_happened(
        self, indexed: FusionEngine, tmp_path: Path
    ) -> None:
        whole = self.ask(indexed, tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            self.ask(indexed, tmp_path / "log", progress=Interrupt(2).progress)
        assert untimed(self.ask(indexed, tmp_path / "log")) == untimed(whole)
        # What came from the log is the same to the last bit, inspections included.
        again = self.ask(indexed, tmp_path / "whole")
        assert [asdict(m) for m in again] == [asdict(m) for m in whole]

    def test_the_first_of_each_kind_is_looked_at_where_chunks_are_reused(
        self, indexed: FusionEngine, tmp_path: Path
    ) -> None:
        seen = {
            (m.question, m.strategy.name)
            for m in self.ask(indexed, tmp_path / "log")
            if m.inspection is not None
        }
        names = ("full_reuse", "random", "fusionrag")
        assert seen == {(number, name) for number in (0, 1) for name in names}

    def test_none_is_looked_at_if_none_is_asked_for(
        self, indexed: FusionEngine, tmp_path: Path
    ) -> None:
        found = self.ask(indexed, tmp_path / "log", inspected=0)
        assert {m.inspection for m in found} == {None}
