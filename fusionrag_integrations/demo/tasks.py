"""The demo's questions over its corpus, as prompts of about 2,000 tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.demo import QUESTIONS_PATH
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.store.store import Store

MAX_TOKENS = 12  # answers are names of a few tokens
NEAREST = 4
HITS = 60  # enough to find so many documents in
CHUNKS = 25  # a prompt's chunks, at about 77 tokens each
NOTE = (
    "The questions are about people and places that the model's training never saw, in the kind of "
    "English that it was trained on."
)


def load_questions(
    store: Store, *, path: Path = QUESTIONS_PATH, limit: int | None = None
) -> list[Question]:
    """The questions of the file, at most `limit` of each kind."""
    counts: dict[str, int] = {}
    kept: list[dict[str, Any]] = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        counts[row["kind"]] = counts.get(row["kind"], 0) + 1
        if limit is None or counts[row["kind"]] <= limit:
            kept.append(row)
    return make_questions(store, kept)


def make_questions(store: Store, rows: Sequence[dict[str, Any]]) -> list[Question]:
    """Questions from rows of kind, question, answers and documents.

    As in multi-hop benchmarks, a question's prompt holds the documents that answer it among
    distractors, all of them whole: `NEAREST` that the index finds for the question, which say the
    same of others, and documents drawn at random. The order is random too. Draws are always the
    same for the same question.
    """
    questions: list[Question] = []
    for row in rows:
        context = _context(store, row["question"], row["documents"])
        questions.append(
            Question(
                kind=row["kind"],
                question=row["question"],
                answers=tuple(row["answers"]),
                context=tuple(context),
                prompt=question_prompt(context, row["question"]),
            )
        )
    return questions


def _context(store: Store, question: str, gold: Sequence[str]) -> list[str]:
    """Texts of the prompt's chunks, in order."""
    draw = random.Random(question)
    near = dict.fromkeys(hit.chunk.document_id for hit in store.search(question, HITS))
    distractors = [i for i in near if i not in gold][:NEAREST]
    others = [document.id for document in store.catalog.documents.all()]
    draw.shuffle(others)
    documents: list[list[ChunkRecord]] = []
    room = CHUNKS
    for document_id in dict.fromkeys([*gold, *distractors, *others]):
        chunk_ids = store.catalog.chunks.ids([DocumentKey(document_id)])
        records = list(store.catalog.chunks.records(chunk_ids).values())
        if len(records) <= room:
            documents.append(records)
            room -= len(records)
        if not room:
            break
    draw.shuffle(documents)
    return [record.chunk.text for document in documents for record in document]
