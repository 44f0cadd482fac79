"""Every strategy on the same questions, and how close it comes to full attention on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionrag_integrations.bench.closeness import FullText
from fusionrag_integrations.bench.comparison import Question, take_turns
from fusionrag_integrations.bench.inspection import Inspection, Truth
from fusionrag_integrations.bench.log import append, open_log
from fusionrag_integrations.bench.measurement import Measurement
from fusionrag_integrations.bench.metrics import exact_match, f1, is_right, rouge1
from fusionrag_integrations.bench.shared_pass import Answered, alike_placed, answer_all
from fusionrag_integrations.bench.strategies import FULL, Strategy
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.serving.settings import AnswerSettings

Judge = Callable[[Question, str], float]
"""Gives a score in [0, 1] to an answer, e.g. for faithfulness by a language model of your own."""


def run_quality(
    engine: FusionEngine,
    questions: Sequence[Question],
    strategies: Sequence[Strategy],
    log: Path,
    *,
    identity: Mapping[str, Any],
    max_tokens: int,
    inspected: int,
    judge: Judge | None,
    progress: Callable[[int, int], None],
) -> list[Measurement]:
    """Ask what the log doesn't hold yet, and return all of it that these strategies are.

    strategies: full attention among them. identity: what is measured; a log of something else is
    refused with `InvalidInputError`. inspected: how many questions a kind are timed, and have their
    KV looked at.
    """
    done = open_log(log, identity)
    looked = _first_of_each_kind(questions, inspected)
    warm = False
    for number, question in enumerate(questions):
        progress(number, len(questions))
        held = done.setdefault(number, {})
        missing = [strategy for strategy in strategies if strategy not in held]
        if not missing:
            continue
        if number not in looked:
            measured = _ask(engine, number, question, missing, max_tokens, judge)
        else:  # what is timed takes turns, so all are asked anew
            if not warm:  # the first call warms up
                engine.answer(questions[0].prompt, FULL.settings(max_tokens))
                warm = True
            asked = _ask(engine, number, question, strategies, max_tokens, judge)
            measured = _looked_at(engine, question, asked, max_tokens)
        append(log, measured)
        held |= {m.strategy: m for m in measured}
    progress(len(questions), len(questions))
    return [done[number][s] for number in range(len(questions)) for s in strategies]


def _ask(
    engine: FusionEngine,
    number: int,
    question: Question,
    strategies: Sequence[Strategy],
    max_tokens: int,
    judge: Judge | None,
) -> list[Measurement]:
    """Measure strategies on one question, in shared passes."""
    runs = {strategy: strategy.settings(max_tokens) for strategy in (FULL, *strategies)}
    distinct = list(dict.fromkeys(runs.values()))
    answers = answer_all(engine, question.prompt, distinct, max_tokens)
    full = FullText(engine.model.tokenizer, answers[runs[FULL]].token_ids, question)
    return [
        _measure(number, question, strategy, answers[runs[strategy]], full, judge)
        for strategy in strategies
    ]


def _looked_at(
    engine: FusionEngine, question: Question, measured: Sequence[Measurement], max_tokens: int
) -> list[Measurement]:
    """The same, with times to first token and a look at KV."""
    runs = {m.strategy: m.strategy.settings(max_tokens) for m in measured}
    distinct = list(dict.fromkeys(runs.values()))
    times = _time(engine, question, distinct, measured[0].question)
    looks = _inspect(engine, question, distinct)
    return [
        replace(m, ttft_ms=times.get(run), inspection=looks.get(run))
        for m, run in zip(measured, runs.values(), strict=True)
    ]


def _measure(
    number: int,
    question: Question,
    strategy: Strategy,
    answer: Answered,
    full: FullText,
    judge: Judge | None,
) -> Measurement:
    text = answer.text
    return Measurement(
        question=number,
        kind=question.kind,
        strategy=strategy,
        answer=text.strip(),
        right=is_right(text, question.answers),
        em=exact_match(text, question.answers),
        f1=f1(text, question.answers),
        rouge1=rouge1(text, question.answers),
        closeness=full.closeness(answer),
        recomputed=answer.recomputed,
        work=answer.work,
        judged=None if judge is None else judge(question, text.strip()),
    )


def _time(
    engine: FusionEngine, question: Question, runs: Sequence[AnswerSettings], number: int
) -> dict[AnswerSettings, float]:
    """Milliseconds to the first token under all settings, each by a request of its own."""
    first_token = {run: replace(run, max_tokens=1) for run in runs}
    answers = take_turns(engine, question, first_token, number)
    return {run: answer.ttft.total for run, answer in answers.items()}


def _inspect(
    engine: FusionEngine, question: Question, runs: Sequence[AnswerSettings]
) -> dict[AnswerSettings, Inspection]:
    """What each strategy that reuses chunks does to their KV."""
    looks: dict[AnswerSettings, Inspection] = {}
    for alike in alike_placed(runs):
        truth = Truth(engine, question.prompt, alike[0])
        looks |= {run: truth.inspect(run) for run in alike if truth.has_chunks}
    return looks


def _first_of_each_kind(questions: Sequence[Question], count: int) -> set[int]:
    seen: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        seen.setdefault(question.kind, []).append(number)
    return {number for numbers in seen.values() for number in numbers[:count]}
