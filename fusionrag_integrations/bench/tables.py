"""Comparisons as tables, for a terminal or in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from fusionrag_integrations.bench.comparison import Outcome, Row
from fusionrag_integrations.bench.summary import QualityRow

_TEXT = ("questions", "strategy")
_NUMBERS = ("right", "kept", "redone", "TTFT", "speed-up")


def rows_table(rows: Sequence[Row]) -> Table:
    """One line a strategy, the kinds of question apart. `rows` come kind by kind."""
    # Narrow enough for a terminal of 80 columns.
    table = Table(
        title="Strategies side by side", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for heading in _TEXT:
        table.add_column(heading, no_wrap=True)
    for heading in _NUMBERS:
        table.add_column(heading, justify="right")
    for kind, group in groupby(rows, key=attrgetter("kind")):
        for row in group:
            table.add_row(kind, *row_cells(row))
        table.add_section()
    return table


def row_cells(row: Row) -> tuple[str, ...]:
    """A row's strategy and figures as text."""
    return (
        row.strategy,
        f"{row.right} of {row.n}",
        f"{row.kept} of {row.answerable}",
        f"{row.recompute_ratio:.0%}",
        f"{row.ttft_ms:.0f} ms",
        f"{row.speedup:.1f}x",
    )


def answers_table(outcomes: Sequence[Outcome], a_kind: int) -> Table:
    """The first questions of each kind, with each strategy's answer: green where it is right."""
    table = Table(title="Some of the questions", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("question", "expected", "strategy", "answer"):
        table.add_column(heading)
    shown: Counter[str] = Counter()
    for question, group in groupby(outcomes, key=attrgetter("question")):
        shown[question.kind] += 1
        if shown[question.kind] > a_kind:
            continue
        asked = (escape(question.question), escape(" / ".join(question.answers)))
        for outcome in group:
            colour = "green" if outcome.right else "red"
            answer = escape(" ".join(outcome.answer.text.split()))
            table.add_row(*asked, outcome.strategy, f"[{colour}]{answer}[/{colour}]")
            asked = ("", "")
        table.add_section()
    return table


_STRATEGY = ("questions", "strategy", "kv", "ratio", "n")
CLOSENESS_HEADINGS = (
    *(*_STRATEGY, "kept", "of", "equal", "recovered", "agreement", "KL"),
    *("KL, median", "KL, worst tenth", "KL, answer"),
)
SCORES_HEADINGS = (
    *(*_STRATEGY, "EM", "F1", "95%", "normalised", "ROUGE-1"),
    *("work", "TTFT", "speed-up"),
)


def quality_markdown(rows: Sequence[QualityRow]) -> str:
    """How close each strategy comes to full attention, and how right its answers are: two tables
    of a line a strategy, KV, ratio and kind of question.
    """
    close = markdown(CLOSENESS_HEADINGS, [closeness_cells(row) for row in rows])
    return f"{close}\n\n{markdown(SCORES_HEADINGS, [score_cells(row) for row in rows])}"


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def closeness_cells(row: QualityRow) -> tuple[str, ...]:
    """A row's figures as text, in the order of `CLOSENESS_HEADINGS`."""
    return (
        *_strategy_cells(row),
        *(with_interval(row.kept, row.kept_ci), str(row.kept_of)),
        with_interval(row.equal, row.equal_ci),
        with_interval(row.recovered, row.recovered_ci),
        with_interval(row.agreement, row.agreement_ci),
        with_interval(row.kl, row.kl_ci, ".4f"),
        *(f"{row.kl_median:.4f}", f"{row.kl_worst_tenth:.4f}"),
        "" if row.kl_answer is None else f"{row.kl_answer:.4f}",
    )


def score_cells(row: QualityRow) -> tuple[str, ...]:
    """A row's figures as text, in the order of `SCORES_HEADINGS`."""
    return (
        *_strategy_cells(row),
        *(f"{row.em:.2f}", f"{row.f1:.2f}", f"{row.ci[0]:.2f}-{row.ci[1]:.2f}"),
        "" if row.normalized_f1 is None else f"{row.normalized_f1:.2f}",
        *(f"{row.rouge1:.2f}", f"{row.work:.0%}"),
        "" if row.ttft_ms is None else f"{row.ttft_ms:.0f} ms",
        "" if row.speedup is None else f"{row.speedup:.1f}x",
    )


def _strategy_cells(row: QualityRow) -> tuple[str, ...]:
    return (row.kind, row.strategy, row.kv, f"{row.ratio:.0%}", str(row.n))


def with_interval(value: float | None, bounds: Sequence[float] | None, form: str = ".2f") -> str:
    """A figure with its interval in brackets, where it has one; nothing where there is none."""
    if value is None or bounds is None:
        return "" if value is None else f"{value:{form}}"
    return f"{value:{form}} ({bounds[0]:{form}} to {bounds[1]:{form}})"


TTFT_PARTS = ("load", "place", "probe", "select", "prefill", "first_token")


def ttft_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a strategy, ratio and context: TTFT from token ids, its parts, and the limit."""
    headings = ("context", "strategy", "ratio", "kv", "TTFT (ms)", "quartiles", "speed-up")
    lines = [
        (
            *(f"{row['context']:,}", row["strategy"], f"{row['ratio']:.0%}", row["kv"]),
            f"{row['ttft_ms']:.1f}",
            f"{row['spread_ms'][0]:.1f}-{row['spread_ms'][1]:.1f}",
            f"{row['speedup']:.2f}x",
            f"{row['limit_ms']:.1f}",
            *(f"{row['breakdown'][part]:.1f}" for part in TTFT_PARTS),
            f"{row['from_text_ms']:.1f}",
        )
        for row in rows
    ]
    return markdown((*headings, "limit", *TTFT_PARTS, "from text"), lines)
