"""Every strategy on the same questions: a log of measurements that an interrupted run goes on from.

The log is a file of JSON lines: what is measured, then all strategies' measurements of a question
at a time. Strategies take turns on each question, so that the machine's drift touches all alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusionrag_integrations.answer import Answer
from fusionrag_integrations.bench.comparison import Question, take_turns
from fusionrag_integrations.bench.inspection import Inspection, Truth
from fusionrag_integrations.bench.metrics import exact_match, f1, rouge1
from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.types import AnswerSettings

Judge = Callable[[Question, str], float]
"""Gives a score in [0, 1] to an answer, e.g. for faithfulness by a language model of your own."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One question under one strategy.

    question: its number. work: token-layers before the first token over full attention's.
    recomputed: chunk tokens; ttft_ms: milliseconds. judged: the judge's score, where there is one.
    """

    question: int
    kind: str
    strategy: Strategy
    answer: str
    em: float
    f1: float
    rouge1: float
    ttft_ms: float
    recomputed: int
    work: float
    judged: float | None = None
    inspection: Inspection | None = None


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
    """Ask what the log doesn't hold yet, and return all of it.

    identity: what is measured; a log of something else is refused with `InvalidInputError`.
    inspected: of how many questions a kind the KV is looked at.
    """
    done = open_log(log, identity, strategies)
    chosen = _first_of_each_kind(questions, inspected)
    runs = list(dict.fromkeys(strategy.settings(max_tokens) for strategy in strategies))
    engine.answer(questions[0].prompt, runs[0])  # the first call warms up
    for number, question in enumerate(questions):
        progress(number, len(questions))
        if number in done:
            continue
        answers = take_turns(engine, question, {run: run for run in runs}, number)
        looks = _inspect(engine, question, runs) if number in chosen else {}
        measured = [
            _measure(engine, number, question, strategy, answers[run], looks.get(run), judge)
            for strategy in strategies
            for run in [strategy.settings(max_tokens)]
        ]
        with log.open("a") as lines:  # all of a question at once
            lines.write("".join(json.dumps(asdict(m)) + "\n" for m in measured))
        done[number] = measured
    progress(len(questions), len(questions))
    return [m for number in range(len(questions)) for m in done[number]]


def _measure(
    engine: FusionEngine,
    number: int,
    question: Question,
    strategy: Strategy,
    answer: Answer,
    look: Inspection | None,
    judge: Judge | None,
) -> Measurement:
    usage = answer.usage
    return Measurement(
        question=number,
        kind=question.kind,
        strategy=strategy,
        answer=answer.text.strip(),
        em=exact_match(answer.text, question.answers),
        f1=f1(answer.text, question.answers),
        rouge1=rouge1(answer.text, question.answers),
        ttft_ms=answer.ttft.total,
        recomputed=usage.recomputed_tokens,
        work=usage.token_layers / (usage.prompt_tokens * engine.model.num_layers),
        judged=None if judge is None else judge(question, answer.text.strip()),
        inspection=look,
    )


def _inspect(
    engine: FusionEngine, question: Question, runs: Sequence[AnswerSettings]
) -> dict[AnswerSettings, Inspection]:
    """What each strategy that reuses chunks does to their KV."""
    looks: dict[AnswerSettings, Inspection] = {}
    for kv in ("isolated", "fused"):
        own = [run for run in runs if run.kv == kv]
        if own:
            truth = Truth(engine, question.prompt, own[0])
            looks |= {run: truth.inspect(run) for run in own if truth.has_chunks}
    return looks


def _first_of_each_kind(questions: Sequence[Question], count: int) -> set[int]:
    seen: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        seen.setdefault(question.kind, []).append(number)
    return {number for numbers in seen.values() for number in numbers[:count]}


def open_log(
    path: Path, identity: Mapping[str, Any], strategies: Sequence[Strategy]
) -> dict[int, list[Measurement]]:
    """What a log holds, by question; a log that isn't there is begun.

    A line that an interruption cut is dropped, with the others of its question. Raises
    `InvalidInputError` for the log of another run.
    """
    described = [asdict(strategy) for strategy in strategies]
    head = json.dumps(dict(identity) | {"strategies": described}, sort_keys=True)
    if not path.exists() or not path.read_text():
        _write(path, [head])
        return {}
    first, *lines = path.read_text().splitlines()
    if first != head:
        raise InvalidInputError(
            f"{path} is of another run: it says {first}, and this one is {head}. Give another "
            "directory, or the same model, data set, seed and strategies."
        )
    done: dict[int, list[Measurement]] = {}
    for measurement in _read(lines):
        done.setdefault(measurement.question, []).append(measurement)
    whole = {number: found for number, found in done.items() if len(found) == len(strategies)}
    kept = [json.dumps(asdict(m)) for found in whole.values() for m in found]
    _write(path, [head, *kept])
    return whole


def _write(path: Path, lines: Sequence[str]) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text("\n".join(lines) + "\n")
    draft.replace(path)


def _read(lines: Sequence[str]) -> Iterator[Measurement]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            return
        look = row.pop("inspection")
        if look is not None:
            lists = {name: tuple(look[name]) for name in ("deviation", "places")}
            look = Inspection(**look | lists)
        strategy = Strategy(**row.pop("strategy"))
        yield Measurement(strategy=strategy, inspection=look, **row)
