"""Every question under every strategy: what is asked, what is kept, and how a run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from transformers import AutoModelForCausalLM

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.bench import quality
from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.measurement import Measurement
from fusionrag_integrations.bench.metrics import exact_match, f1, rouge1
from fusionrag_integrations.bench.quality import run_quality
from fusionrag_integrations.bench.shared_pass import Answered, answer_all
from fusionrag_integrations.bench.strategies import FULL, REUSE, PlacedKV, Strategy, make_strategies
from fusionrag_integrations.bench.summary import summarise
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.answer import Answer
from tests.conftest import all_records, town
from tests.reference import Reference

pytest.importorskip("rouge_score")

NAMES = ("full_reuse", "random", "epic")
KV = get_args(PlacedKV)
STRATEGIES = make_strategies(NAMES, (0.0, 0.3, 1.0), KV)
RUNS = 1 + len(KV) * (1 + 2 + 1)  # full attention; for each KV nothing, two selectors, everything
KINDS = ("single", "single", "bridge", "single", "bridge")
MAX_TOKENS = 6


def nothing(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """Random weights, so that answers differ a lot from strategy to strategy."""
    path = tmp_path_factory.mktemp("quality") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48)
    engine.ingest([town(0), town(1)])
    return engine


@pytest.fixture(scope="module")
def questions(engine: FusionEngine) -> list[Question]:
    texts = [record.chunk.text for record in all_records(engine.store.catalog)]
    return [
        Question(kind, asked, ("the river",), tuple(context), question_prompt(context, asked))
        for number, kind in enumerate(KINDS)
        for asked, context in [(f"Which house is number {number}?", [texts[number], texts[3]])]
    ]


Run = Callable[..., list[Measurement]]


@pytest.fixture
def run(engine: FusionEngine, questions: list[Question], tmp_path: Path) -> Run:
    def run(log: str = "log.jsonl", **changes: Any) -> list[Measurement]:
        plain: dict[str, Any] = {
            "questions": questions,
            "strategies": STRATEGIES,
            "identity": {"model": "tiny", "seed": 0},
            "max_tokens": MAX_TOKENS,
            "inspected": 0,
            "judge": None,
            "progress": nothing,
        }
        given = plain | changes
        return run_quality(
            engine, given.pop("questions"), given.pop("strategies"), tmp_path / log, **given
        )

    return run


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """The prompts that were answered in shared passes."""
    seen: list[Prompt] = []

    def watched(engine: FusionEngine, prompt: Prompt, *rest: Any) -> dict[AnswerSettings, Answered]:
        seen.append(prompt)
        return answer_all(engine, prompt, *rest)

    monkeypatch.setattr(quality, "answer_all", watched)
    return seen


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Prompt, AnswerSettings]]:
    """What the engine was asked by itself."""
    seen: list[tuple[Prompt, AnswerSettings]] = []
    answer = FusionEngine.answer

    def watched(engine: FusionEngine, prompt: Prompt, settings: AnswerSettings) -> Answer:
        seen.append((prompt, settings))
        return answer(engine, prompt, settings)

    monkeypatch.setattr(FusionEngine, "answer", watched)
    return seen


@pytest.fixture(scope="module")
def finished(
    engine: FusionEngine, questions: list[Question], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Measurement]]:
    """The log of a whole run, and what was measured in it."""
    path = tmp_path_factory.mktemp("finished") / "log.jsonl"
    return (
        path,
        run_quality(
            *(engine, questions, STRATEGIES, path),
            identity={"model": "tiny", "seed": 0},
            max_tokens=MAX_TOKENS,
            inspected=1,
            judge=None,
            progress=nothing,
        ),
    )


class TestMeasurements:
    def test_all_strategies_of_a_question_then_the_next(
        self, finished: tuple[Path, list[Measurement]]
    ) -> None:
        found = finished[1]
        assert [(m.question, m.strategy) for m in found] == [
            (number, strategy) for number in range(len(KINDS)) for strategy in STRATEGIES
        ]
        assert [m.kind for m in found[:: len(STRATEGIES)]] == list(KINDS)

    def test_answers_and_scores_are_those_of_the_engines_answers(
        self, run: Run, engine: FusionEngine, questions: list[Question]
    ) -> None:
        """With accepted answers that some strategies give, and others don't."""
        few = [questions[0], questions[2]]
        settings = [s.settings(MAX_TOKENS) for s in STRATEGIES]
        answers = [[engine.answer(q.prompt, s) for s in settings] for q in few]
        accepted = [a[0].text.split()[0] for a in answers]
        few = [replace(q, answers=(a,)) for q, a in zip(few, accepted, strict=True)]
        found = run(questions=few)
        expected = [(q, a) for q, of_q in zip(few, answers, strict=True) for a in of_q]
        for m, (question, answer) in zip(found, expected, strict=True):
            assert m.answer == answer.text.strip()
            assert m.em == exact_match(answer.text, question.answers)
            assert m.f1 == f1(answer.text, question.answers)
            assert m.rouge1 == rouge1(answer.text, question.answers)
            assert m.recomputed == answer.usage.recomputed_tokens
            whole = answer.usage.prompt_tokens * engine.model.num_layers
            assert m.work == pytest.approx(answer.usage.token_layers / whole)
        assert {m.right for m in found} == {True, False}
        assert all(m.right for m in found if m.strategy == FULL)

    def test_closeness_is_to_full_attentions_answer(
        self, run: Run, engine: FusionEngine, questions: list[Question]
    ) -> None:
        """The divergence by transformers alone where all is recomputed or nothing is reused."""
        found = {m.strategy: m.closeness for m in run(questions=questions[:1])}
        full, new = found[FULL], found[Strategy("epic", "isolated", 1.0)]
        assert (full.equal, full.agreed, full.kl) == (True, full.tokens, 0.0)
        assert (new.equal, new.agreed) == (True, new.tokens)
        assert new.kl == pytest.approx(0.0, abs=1e-5)
        reuse = found[REUSE]
        assert not reuse.equal
        assert reuse.kl == pytest.approx(self.by_hand(engine, questions[0]), rel=1e-3)

    @staticmethod
    def by_hand(engine: FusionEngine, question: Question) -> float:
        """Full reuse's divergence, over KV that transformers has made chunk by chunk."""
        reference = Reference(AutoModelForCausalLM.from_pretrained(engine.model.source))
        prompt = engine.load(question.prompt, REUSE.settings(MAX_TOKENS)).prompt
        answer = engine.answer(question.prompt, FULL.settings(MAX_TOKENS)).token_ids
        prefix = engine.encode("<s><|system|>\nAnswer the question from the context.<|end|>\n")
        prefix += engine.encode("<|user|>\nContext:\n")
        cache, at = reference.new_cache(), 0
        for span in prompt.spans:
            reference.feed(cache, prompt.token_ids[at : span.start], at)
            begin = span.start - span.source_start
            keys, values = reference.isolated(prefix, span.record.encoded.token_ids, begin)
            own = slice(span.source_start, span.source_start + span.length)
            reference.append(cache, (keys[:, :, own], values[:, :, own]))
            at = span.stop
        rest = [*prompt.token_ids[at:], *answer[:-1]]
        own = reference.feed(cache, rest, at)[-len(answer) :].double().log_softmax(-1)
        true, _ = reference.dense([*prompt.token_ids, *answer[:-1]])
        true = true[-len(answer) :].double().log_softmax(-1)
        return float((true.exp() * (true - own)).sum(-1).sum())

    @pytest.mark.parametrize("length", [2, 9])
    def test_the_answers_have_the_length_asked_for(
        self, run: Run, questions: list[Question], length: int
    ) -> None:
        found = run(questions=questions[:1], max_tokens=length)
        assert {m.closeness.tokens for m in found} == {length}

    def test_equal_settings_share_what_is_measured(
        self, finished: tuple[Path, list[Measurement]]
    ) -> None:
        found = {(m.question, m.strategy): m for m in finished[1]}
        for kv in KV:
            reuse = Strategy("full_reuse", kv, 0.0)
            for number in range(len(KINDS)):
                for name in ("random", "epic"):
                    same = found[number, Strategy(name, kv, 0.0)]
                    assert replace(same, strategy=reuse) == found[number, reuse]  # the time too

    def test_progress_goes_to_the_end(self, run: Run, questions: list[Question]) -> None:
        seen: list[tuple[int, int]] = []
        run(questions=questions[:2], progress=lambda *at: seen.append(at))
        assert seen == [(0, 2), (1, 2), (2, 2)]


def test_the_judge_gets_the_question_and_the_stripped_answer(
    run: Run, questions: list[Question]
) -> None:
    judged: list[tuple[str, str]] = []

    def judge(question: Question, answer: str) -> float:
        judged.append((question.question, answer))
        return len(answer) / 100

    found = run(questions=questions[:2], judge=judge)
    assert judged == [(f"Which house is number {m.question}?", m.answer) for m in found]
    assert all(m.answer == m.answer.strip() for m in found)
    assert [m.judged for m in found] == [len(m.answer) / 100 for m in found]
    assert run(questions=questions[:2], judge=None) == found  # the log keeps them


class TestTheFirstOfEachKind:
    """So many are asked of the engine by itself, for their time, and have their KV looked at."""

    @pytest.mark.parametrize(("count", "numbers"), [(0, set()), (1, {0, 2}), (2, {0, 1, 2, 4})])
    def test_are_timed_and_looked_at(self, run: Run, count: int, numbers: set[int]) -> None:
        found = run(inspected=count)
        assert {m.question for m in found if m.ttft_ms is not None} == numbers
        for m in found:
            assert (m.ttft_ms is not None) == (m.question in numbers)
            assert m.ttft_ms is None or m.ttft_ms > 0.0
            reuses = m.strategy.placed != "none"
            assert (m.inspection is not None) == (m.question in numbers and reuses)

    def test_each_setting_is_timed_once_to_its_first_token(
        self, run: Run, questions: list[Question], timed: list[tuple[Prompt, AnswerSettings]]
    ) -> None:
        run(inspected=1)
        warm_up, *rest = timed
        assert warm_up == (questions[0].prompt, FULL.settings(MAX_TOKENS))
        assert len(rest) == 2 * RUNS
        for number, part in ((0, rest[:RUNS]), (2, rest[RUNS:])):
            assert [prompt for prompt, _ in part] == [questions[number].prompt] * RUNS
            assert len({settings for _, settings in part}) == RUNS
            assert {settings for _, settings in part} == {
                replace(s.settings(MAX_TOKENS), max_tokens=1) for s in STRATEGIES
            }
        assert rest[0][1] != rest[RUNS][1]  # another goes first

    def test_where_none_is_timed_the_engine_is_not_asked(
        self, run: Run, timed: list[tuple[Prompt, AnswerSettings]]
    ) -> None:
        run()
        assert timed == []

    def test_the_time_is_that_of_the_first_token(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer = FusionEngine.answer
        taken: dict[tuple[str, AnswerSettings], float] = {}

        def watched(engine: FusionEngine, prompt: Prompt, settings: AnswerSettings) -> Answer:
            found = answer(engine, prompt, settings)
            taken[str(prompt), replace(settings, max_tokens=MAX_TOKENS)] = found.ttft.total
            return found

        monkeypatch.setattr(FusionEngine, "answer", watched)
        found = [m for m in run(inspected=1) if m.ttft_ms is not None]
        assert len(found) == 2 * len(STRATEGIES)
        for m in found:
            (time,) = (
                ms
                for (prompt, settings), ms in taken.items()
                if f"number {m.question}?" in prompt and settings == m.strategy.settings(MAX_TOKENS)
            )
            assert m.ttft_ms == time


def stop_at(question: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == question:
            raise KeyboardInterrupt

    return progress


def untimed(measurements: list[Measurement]) -> list[Measurement]:
    return [replace(m, ttft_ms=None) for m in measurements]


class TestGoingOn:
    @pytest.mark.parametrize("question", [0, 3, len(KINDS)])
    def test_no_question_is_asked_twice(
        self,
        run: Run,
        questions: list[Question],
        finished: tuple[Path, list[Measurement]],
        followed: list[Prompt],
        question: int,
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(progress=stop_at(question), inspected=1)
        assert followed == [q.prompt for q in questions[:question]]
        found = run(inspected=1)
        assert followed == [q.prompt for q in questions]
        assert untimed(found) == untimed(finished[1])

    def test_a_question_that_was_cut_short_is_asked_anew(
        self,
        run: Run,
        questions: list[Question],
        finished: tuple[Path, list[Measurement]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def interrupted(engine: FusionEngine, prompt: Prompt, *rest: Any) -> Any:
            found = answer_all(engine, prompt, *rest)
            if prompt == questions[1].prompt:
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(quality, "answer_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(inspected=1)
        monkeypatch.undo()
        assert untimed(run(inspected=1)) == untimed(finished[1])

    def test_what_is_read_from_the_log_is_the_same_to_the_last_bit(
        self,
        run: Run,
        log: Path,
        finished: tuple[Path, list[Measurement]],
        followed: list[Prompt],
        timed: list[tuple[Prompt, AnswerSettings]],
    ) -> None:
        path, measured = finished
        log.write_text(path.read_text())
        found = run(inspected=1)
        assert [asdict(m) for m in found] == [asdict(m) for m in measured]
        assert summarise(found) == summarise(measured)
        assert (followed, timed) == ([], [])  # not to warm up either

    @pytest.mark.parametrize(
        ("cut", "lost"),
        [
            (1, set()),  # the last line feed
            (2, {4}),
            (60, {4}),
            ("line", {4}),
            ("two lines and a half", {4}),
            ("question", {4}),
            ("question and a half line", {3, 4}),
        ],
    )
    def test_what_was_cut_is_asked_anew(
        self,
        run: Run,
        log: Path,
        questions: list[Question],
        finished: tuple[Path, list[Measurement]],
        followed: list[Prompt],
        cut: int | str,
        lost: set[int],
    ) -> None:
        path, measured = finished
        text = path.read_text()
        lines = text.splitlines(keepends=True)
        kept = {
            "line": "".join(lines[:-1]),
            "two lines and a half": "".join(lines[:-3]) + lines[-3][:40],
            "question": "".join(lines[: -len(STRATEGIES)]),
            "question and a half line": "".join(lines[: -len(STRATEGIES)])[:-40],
        }
        log.write_text(text[:-cut] if isinstance(cut, int) else kept[cut])
        assert untimed(run(inspected=1)) == untimed(measured)
        assert followed == [questions[number].prompt for number in sorted(lost)]
        head, *rows = map(json.loads, log.read_text().splitlines())
        assert (head["model"], len(rows)) == ("tiny", len(STRATEGIES) * len(KINDS))

    def test_an_empty_log_is_begun(self, run: Run, log: Path) -> None:
        log.touch()
        assert len(run()) == len(STRATEGIES) * len(KINDS)

    def test_strategies_are_added_to_what_is_there(
        self, run: Run, log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They alone are asked, beside full attention, and a question after the other goes on."""
        few, more = STRATEGIES[:3], [STRATEGIES[0], *STRATEGIES[2:5]]
        first = run(strategies=few)
        asked: list[list[AnswerSettings]] = []

        def watched(
            engine: FusionEngine, prompt: Prompt, runs: list[AnswerSettings], max_tokens: int
        ) -> dict[AnswerSettings, Answered]:
            asked.append(runs)
            return answer_all(engine, prompt, runs, max_tokens)

        monkeypatch.setattr(quality, "answer_all", watched)
        found = run(strategies=more)
        new = [s.settings(MAX_TOKENS) for s in (FULL, *STRATEGIES[3:5])]
        assert asked == [new] * len(KINDS)
        assert found == run("other.jsonl", strategies=more)
        assert run(strategies=few) == first
        assert len(log.read_text().splitlines()) == 1 + len(KINDS) * 5

    @pytest.mark.parametrize(
        "changes",
        [
            {"identity": {"model": "tiny", "seed": 1}},
            {"identity": {"model": "tiny", "seed": 0, "neighbours": "wrong"}},
        ],
    )
    def test_a_log_of_another_run_is_refused_and_kept(
        self,
        run: Run,
        log: Path,
        finished: tuple[Path, list[Measurement]],
        followed: list[Prompt],
        changes: dict[str, Any],
    ) -> None:
        log.write_text(finished[0].read_text())
        before = log.read_text()
        with pytest.raises(InvalidInputError) as refused:
            run(**changes)
        assert str(log) in str(refused.value)
        assert followed == []
        assert log.read_text() == before

    def test_what_differs_is_said(
        self, run: Run, log: Path, finished: tuple[Path, list[Measurement]]
    ) -> None:
        head, *rows = finished[0].read_text().splitlines()
        other = json.loads(head) | {"seed": 41}
        log.write_text("\n".join([json.dumps(other, sort_keys=True), *rows]) + "\n")
        with pytest.raises(InvalidInputError, match=r"run: its seed is 41, and here it is \d+\. "):
            run()

    @pytest.mark.parametrize("line", ["{", "{}", "[]", '{"inspection": null}'])
    def test_a_damaged_line_loses_nothing_behind_it(
        self, run: Run, log: Path, finished: tuple[Path, list[Measurement]], line: str
    ) -> None:
        """Only a last line can have been cut by an interruption."""
        head, first, *rows = finished[0].read_text().splitlines()
        damaged = "\n".join([head, first, line, *rows]) + "\n"
        log.write_text(damaged)
        with pytest.raises(InvalidInputError, match="is damaged: line 3 is no measurement"):
            run()
        assert log.read_text() == damaged

    def test_a_log_in_an_older_format_is_of_another_run(
        self, run: Run, log: Path, finished: tuple[Path, list[Measurement]]
    ) -> None:
        head, *rows = finished[0].read_text().splitlines()
        older = {name: value for name, value in json.loads(head).items() if name != "format"}
        log.write_text("\n".join([json.dumps(older, sort_keys=True), *rows]) + "\n")
        with pytest.raises(InvalidInputError, match="is of another run"):
            run()
