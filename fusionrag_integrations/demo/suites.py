"""The demo's questions with fresh seeds, and the harder suite, for `fusionrag bench quality`."""

from __future__ import annotations

from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.suites import Suite, context_question
from fusionrag_integrations.demo import CHUNK_TOKENS
from fusionrag_integrations.demo.hard import HardQuestion, build_hard_suite
from fusionrag_integrations.demo.make_corpus import make
from fusionrag_integrations.demo.tasks import make_questions
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.types import Document

MAX_TOKENS = 12  # answers are names of a few tokens
# Bridges are rare: about one for three documents.
DOCUMENTS_A_QUESTION = 4
LEAST_DOCUMENTS = 80


def demo_suite(seed: int, questions_a_kind: int) -> Suite:
    """The demo's three kinds of question, over a new world."""
    documents = max(LEAST_DOCUMENTS, DOCUMENTS_A_QUESTION * questions_a_kind)
    corpus, rows = make(f"quality {seed}", documents, questions_a_kind)
    return Suite(
        name="demo",
        documents=tuple(Document(r["id"], r["text"], r["title"]) for r in corpus),
        chunk_tokens=CHUNK_TOKENS,
        max_tokens=MAX_TOKENS,
        questions=lambda engine: make_questions(engine.corpus, rows),
    )


def hard_suite(seed: int, questions_a_kind: int) -> Suite:
    """The harder kinds; see `hard.py`."""
    documents, asked = build_hard_suite(f"hard quality {seed}", questions_a_kind)
    return Suite(
        name="hard",
        documents=tuple(documents),
        chunk_tokens=CHUNK_TOKENS,
        max_tokens=MAX_TOKENS,
        questions=lambda engine: [_hard_question(engine, question) for question in asked],
    )


def _hard_question(engine: FusionEngine, asked: HardQuestion) -> Question:
    ids = {
        document_id: engine.corpus.catalog.chunk_ids([document_id])
        for document_id, _ in asked.context
    }
    chunk_ids = [ids[document_id][paragraph] for document_id, paragraph in asked.context]
    return context_question(
        engine, asked.kind, asked.question, asked.answers, chunk_ids, MAX_TOKENS
    )
