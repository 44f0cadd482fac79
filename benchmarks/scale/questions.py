"""Prompts of real questions, and how much the chunks that are found for them overlap.

A file has a question a line with the passages that came with it (JSON lines: `id`, `question`,
`passages` of `title`, `text`, `supporting`). All passages of a file are searched, by the package's
own embedding, as a store without a better one does.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.scale.prompts import Prompt, RealPrompts
from fusionrag_integrations.documents.embedding import LexicalEmbedder

RETRIEVED = 5
CHOSEN_ON = 30
"""Rows of a file that choices were made on; figures are of the others."""
CHARACTERS_A_TOKEN = 4
"""About, in English: only shares of tokens matter here."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question: what it is about, its own passages, and those that were found for it.

    found: tokens by id, the nearest first. A passage's id is its article's title, a stroke and a
    number.
    """

    topic: str
    own: frozenset[str]
    found: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Overlap:
    """How alike questions are in the chunks that are found for them, as shares of these.

    own: those among the passages that came with the question. same_topic, other_topic: those that
    two questions of one topic have in common, and two of different ones; None where there are none.
    """

    questions: int
    topics: int
    passages: int
    own: float
    same_topic: float | None
    other_topic: float | None


def read_questions(path: Path) -> list[Asked]:
    """The questions behind the first `CHOSEN_ON` of a file, with what is found for each."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    titles = {p["text"]: p["title"].replace("/", " ") for row in rows for p in row["passages"]}
    ids = {text: f"{title}/{number}" for number, (text, title) in enumerate(titles.items())}
    tokens = {ids[text]: max(1, len(text) // CHARACTERS_A_TOKEN) for text in titles}
    embedder, names = LexicalEmbedder(), [*tokens]
    passages = np.array(embedder.embed_documents([*titles]), dtype=np.float32)
    asked = []
    for row in rows[CHOSEN_ON:]:
        nearest = _nearest(embedder.embed_query(row["question"]), passages)
        own = frozenset(ids[passage["text"]] for passage in row["passages"])
        asked.append(Asked(_topic(row), own, {names[i]: tokens[names[i]] for i in nearest}))
    return asked


def as_prompts(
    questions: Sequence[Asked], own_tokens: int = 64, output_tokens: int = 64
) -> RealPrompts:
    """Prompts with the chunks found for these, by topic."""
    by_topic = defaultdict(list)
    for asked in questions:
        by_topic[asked.topic].append(Prompt(asked.found, own_tokens, output_tokens))
    return RealPrompts(list(by_topic.values()))


def overlap(questions: Sequence[Asked]) -> Overlap:
    """How alike they are."""
    pairs = list(combinations(questions, 2))
    return Overlap(
        questions=len(questions),
        topics=len({asked.topic for asked in questions}),
        passages=len({passage for asked in questions for passage in asked.own}),
        own=mean(len(asked.own & asked.found.keys()) / RETRIEVED for asked in questions),
        same_topic=_shared(pair for pair in pairs if pair[0].topic == pair[1].topic),
        other_topic=_shared(pair for pair in pairs if pair[0].topic != pair[1].topic),
    )


def _topic(row: Mapping[str, Any]) -> str:
    """The article of its supporting passages; a question over several is a topic of its own."""
    titles = {passage["title"] for passage in row["passages"] if passage["supporting"]}
    return titles.pop() if len(titles) == 1 else str(row["id"])


def _nearest(question: Sequence[float], passages: Any) -> Any:
    return np.argsort(-(passages @ np.array(question, dtype=np.float32)), kind="stable")[:RETRIEVED]


def _shared(pairs: Iterator[tuple[Asked, Asked]]) -> float | None:
    shares = [len(first.found.keys() & second.found.keys()) / RETRIEVED for first, second in pairs]
    return mean(shares) if shares else None
