"""Strategies side by side: what is right, what is kept, and medians; tables of them."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table

from fusionrag_integrations.bench.comparison import Outcome, Question, Row, summarise
from fusionrag_integrations.bench.tables import answers_table, row_cells, rows_table
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.serving.timing import TTFTBreakdown
from fusionrag_integrations.serving.usage import Usage

CITIES = ("Warsaw", "Paris", "Rome")
# Full attention fails the last question; reuse fails the first and answers the last.
SAID = {"full": ("It is Warsaw.", "Paris", "Bern"), "reuse": ("Bern", "Paris, in fact", "Rome")}
COST = {"full": (100, (30.0, 10.0, 20.0)), "reuse": (20, (5.0, 5.0, 10.0))}


def outcomes(kind: str = "cities") -> list[Outcome]:
    """Question by question, as they are measured. Of 100 tokens 100 or 20 are recomputed."""
    made = []
    for number, city in enumerate(CITIES):
        question = Question(kind, f"Which city is number {number}?", (city, "none"), (), "")
        for strategy, (recomputed, times) in COST.items():
            usage = Usage(110, 100 - recomputed, recomputed, 10, 0, 3, 0)
            ttft = TTFTBreakdown(0, 0, 0, 0, 0, times[number])
            text = SAID[strategy][number]
            answer = Answer(text, (), "stop", usage, ttft)
            ratio = COST["full"][1][number] / times[number]
            made.append(Outcome(strategy, question, answer, ratio, answerable=number < 2))
    return made


def shown(table: Table) -> str:
    console = Console(width=100, file=StringIO())
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_rows_count_what_is_right_and_what_is_kept() -> None:
    full, reuse = summarise(outcomes())
    assert (full.n, full.right, full.answerable, full.kept) == (3, 2, 2, 2)
    assert (reuse.n, reuse.right, reuse.answerable, reuse.kept) == (3, 2, 2, 1)
    assert full.em == pytest.approx(1 / 3)  # only one says no more than the answer


def test_costs_are_medians() -> None:
    full, reuse = summarise(outcomes())
    assert (full.recompute_ratio, full.ttft_ms, full.speedup) == (1.0, 20.0, 1.0)
    assert (reuse.recompute_ratio, reuse.ttft_ms, reuse.speedup) == (0.2, 5.0, 2.0)


def test_a_row_as_text() -> None:
    row = Row("reuse", "cities", 30, 21, 28, 20, 0.5, 0.25, 0.149, 212.6, 3.46)
    assert row_cells(row) == ("reuse", "21 of 30", "20 of 28", "15%", "213 ms", "3.5x")


def test_the_table_has_a_line_a_row() -> None:
    lines = shown(rows_table(summarise(outcomes()))).splitlines()
    assert sum("cities" in line for line in lines) == 2
    assert any("1 of 2" in line for line in lines)


def test_so_many_questions_of_each_kind_are_shown_with_all_answers() -> None:
    printed = shown(answers_table([*outcomes(), *outcomes("towns")], 2))
    assert printed.count("number 0?") == printed.count("number 1?") == 2
    assert "number 2?" not in printed
    assert printed.count("Paris, in fact") == 2
    assert printed.count("Warsaw / none") == 2
