"""The demo made small: some of its questions, the documents that answer them, and some others."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fusionrag_integrations.demo import CORPUS_PATH, QUESTIONS_PATH

Row = dict[str, Any]


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def few_questions(a_kind: int) -> list[Row]:
    """The first questions of each kind, as `load_questions` with such a limit has them."""
    by_kind: dict[str, list[Row]] = {}
    for row in rows_of(QUESTIONS_PATH):
        by_kind.setdefault(row["kind"], []).append(row)
    return [row for rows in by_kind.values() for row in rows[:a_kind]]


def few_documents(questions: list[Row], others: int) -> list[Row]:
    """The corpus's rows that answer these questions, and others that answer none of them."""
    corpus = {row["id"]: row for row in rows_of(CORPUS_PATH)}
    needed = dict.fromkeys(name for question in questions for name in question["documents"])
    rest = [name for name in corpus if name not in needed]
    return [corpus[name] for name in [*needed, *Random(0).sample(rest, others)]]


def write_few_documents(path: Path, a_kind: int, others: int) -> Path:
    """A corpus for so many questions of each kind, as a file like the demo's own."""
    rows = few_documents(few_questions(a_kind), others)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
