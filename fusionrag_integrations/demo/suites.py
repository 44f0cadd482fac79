"""The demo's questions with fresh seeds, and the harder suite, for `fusionrag bench quality`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.suites import Suite, content_hash, context_question
from fusionrag_integrations.demo import CHUNK_TOKENS
from fusionrag_integrations.demo.corpus import make
from fusionrag_integrations.demo.hard import HARD_KINDS, HardQuestion, build_hard_suite
from fusionrag_integrations.demo.tasks import MAX_TOKENS, make_questions
from fusionrag_integrations.demo.world import QuestionKind
from fusionrag_integrations.documents.types import Document, DocumentKey
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import InvalidInputError

# Bridges are rare: about one for three or four documents.
DOCUMENTS_A_QUESTION = 4
LEAST_DOCUMENTS = 80


def demo_suite(
    seed: int, questions_a_kind: int, kinds: Sequence[str] = get_args(QuestionKind)
) -> Suite:
    """The demo's kinds of question, over a new world; raises `InvalidInputError` for others."""
    _check(kinds, get_args(QuestionKind))
    documents = max(LEAST_DOCUMENTS, DOCUMENTS_A_QUESTION * questions_a_kind)
    corpus, rows = make(f"quality {seed}", documents, questions_a_kind)
    return Suite(
        name="demo",
        content=content_hash(corpus, rows, kinds),
        documents=tuple(Document(r["id"], r["text"], r["title"]) for r in corpus),
        chunk_tokens=CHUNK_TOKENS,
        max_tokens=MAX_TOKENS,
        questions=lambda engine: make_questions(
            engine.store, [row for row in rows if row["kind"] in kinds]
        ),
    )


def hard_suite(seed: int, questions_a_kind: int, kinds: Sequence[str] = HARD_KINDS) -> Suite:
    """The harder kinds; see `hard.py`. Raises `InvalidInputError` for others."""
    documents, asked = build_hard_suite(f"hard quality {seed}", questions_a_kind, kinds)
    return Suite(
        name="hard",
        content=content_hash(documents, asked),
        documents=tuple(documents),
        chunk_tokens=CHUNK_TOKENS,
        max_tokens=MAX_TOKENS,
        questions=lambda engine: [_hard_question(engine, question) for question in asked],
    )


def _check(kinds: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [kind for kind in kinds if kind not in known]:
        raise InvalidInputError(
            f"Unknown kinds {', '.join(unknown)}; known are {', '.join(known)}."
        )


def _hard_question(engine: FusionEngine, asked: HardQuestion) -> Question:
    ids = {
        document_id: engine.store.catalog.chunks.ids([DocumentKey(document_id)])
        for document_id, _ in asked.context
    }
    chunk_ids = [ids[document_id][paragraph] for document_id, paragraph in asked.context]
    return context_question(
        engine, asked.kind, asked.question, asked.answers, chunk_ids, MAX_TOKENS
    )
