"""The same questions under several strategies, side by side.

Strategies take turns on each question, so that the machine's drift touches all alike, and the
one that goes first changes from question to question.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from fusionrag_integrations.bench.metrics import exact_match, f1, is_right
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.serving.settings import AnswerSettings

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its accepted answers, the chunks to answer from, and the prompt."""

    kind: str
    question: str
    answers: tuple[str, ...]
    context: tuple[str, ...]
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question answered under one strategy.

    ttft_ratio: the reference's TTFT over this one's. answerable: whether the reference's answer is
    right.
    """

    strategy: str
    question: Question
    answer: Answer
    ttft_ratio: float
    answerable: bool

    @property
    def right(self) -> bool:
        """Whether an accepted answer stands in the text."""
        return is_right(self.answer.text, self.question.answers)

    @property
    def exact(self) -> float:
        return exact_match(self.answer.text, self.question.answers)

    @property
    def f1(self) -> float:
        return f1(self.answer.text, self.question.answers)


@dataclass(frozen=True, slots=True)
class Row:
    """A strategy's results on one kind of question.

    right: of n answers, how many hold an accepted one. kept: how many of the `answerable`, which
    the reference answers rightly. recompute_ratio, ttft_ms and speedup are medians; speedup is over
    the reference, paired by question.
    """

    strategy: str
    kind: str
    n: int
    right: int
    answerable: int
    kept: int
    f1: float
    em: float
    recompute_ratio: float
    ttft_ms: float
    speedup: float


def compare(
    engine: FusionEngine,
    questions: Sequence[Question],
    strategies: dict[str, AnswerSettings],
    reference: str,
    progress: Callable[[int, int], None],
) -> list[Outcome]:
    """Answer every question under every strategy; speed-ups are over the one named `reference`."""
    names = list(strategies)
    engine.answer(questions[0].prompt, strategies[reference])  # the first call warms up
    outcomes: list[Outcome] = []
    for number, question in enumerate(questions):
        progress(number, len(questions))
        answers = take_turns(engine, question, strategies, number)
        baseline = answers[reference].ttft.total
        answerable = is_right(answers[reference].text, question.answers)
        outcomes += [
            Outcome(name, question, answers[name], baseline / answers[name].ttft.total, answerable)
            for name in names
        ]
    progress(len(questions), len(questions))
    return outcomes


def take_turns(
    engine: FusionEngine, question: Question, runs: Mapping[K, AnswerSettings], number: int
) -> dict[K, Answer]:
    """The question's answers under all settings. Which goes first depends on its number."""
    names = list(runs)
    turn = number % len(names)
    return {
        name: engine.answer(question.prompt, runs[name]) for name in names[turn:] + names[:turn]
    }


def summarise(outcomes: Iterable[Outcome]) -> list[Row]:
    """One row a strategy and kind, in the order of first appearance."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.strategy, outcome.question.kind), []).append(outcome)
    return [
        Row(
            strategy=strategy,
            kind=kind,
            n=len(group),
            right=sum(o.right for o in group),
            answerable=sum(o.answerable for o in group),
            kept=sum(o.right and o.answerable for o in group),
            f1=_mean([o.f1 for o in group]),
            em=_mean([o.exact for o in group]),
            recompute_ratio=median(o.answer.usage.recompute_ratio for o in group),
            ttft_ms=median(o.answer.ttft.total for o in group),
            speedup=median(o.ttft_ratio for o in group),
        )
        for (strategy, kind), group in groups.items()
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
