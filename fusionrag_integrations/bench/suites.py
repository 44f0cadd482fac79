"""What is asked: documents to ingest, and questions over their chunks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.datasets import QADataset
from fusionrag_integrations.documents.types import Document, DocumentKey
from fusionrag_integrations.engine import DEFAULT_CHUNK_TOKENS, FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt import BRIEFLY, question_as_prompt, question_prompt
from fusionrag_integrations.prompt.messages import Prompt

MAX_TOKENS = 32  # published answers are a few words

MakePrompt = Callable[[Sequence[str], str], Prompt]
"""Asks a question over the texts of chunks."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Suite:
    """Documents, and the questions that can be asked once an engine has ingested them.

    content: a hash of what is asked over what. chunk_tokens: the longest chunk, in tiktoken tokens.
    max_tokens: the longest answer.
    """

    name: str
    content: str
    documents: tuple[Document, ...]
    chunk_tokens: int
    max_tokens: int
    questions: Callable[[FusionEngine], list[Question]]


def published_suite(dataset: QADataset) -> Suite:
    """A published data set: each question over all chunks of its own documents, in their order.

    Their answers are short, and the prompt asks for no more: what a model says beyond them is
    hardly about the chunks.
    """
    return Suite(
        name=dataset.name,
        content=content_hash(dataset, question_prompt((), "", BRIEFLY)),
        documents=dataset.documents,
        chunk_tokens=DEFAULT_CHUNK_TOKENS,
        max_tokens=MAX_TOKENS,
        questions=lambda engine: _published_questions(engine, dataset),
    )


def content_hash(*parts: object) -> str:
    """Tells apart what reads differently, from one process to another."""
    return sha256(repr(parts).encode(errors="surrogatepass")).hexdigest()[:16]


def context_question(
    engine: FusionEngine,
    kind: str,
    question: str,
    answers: tuple[str, ...],
    chunk_ids: list[str],
    max_tokens: int,
    make_prompt: MakePrompt = question_prompt,
) -> Question:
    """A question over chunks, in this order; the last ones are left out where they don't fit.

    Raises `InvalidInputError` where not even one fits.
    """
    records = engine.store.catalog.chunks.records(chunk_ids)
    texts = [records[chunk_id].chunk.text for chunk_id in chunk_ids]
    asked = len(texts)
    prompt = make_prompt(texts, question)
    while texts and engine.count_tokens(prompt) + max_tokens > engine.context_window:
        texts.pop()
        prompt = make_prompt(texts, question)
    if not texts:
        raise InvalidInputError(
            f"The context of {engine.model_name} holds {engine.context_window} tokens: too few for "
            f"one chunk and the question {question!r}."
        )
    if len(texts) < asked:
        logger.warning("%r: %d of %d chunks fit the prompt", question, len(texts), asked)
    return Question(kind, question, answers, tuple(texts), prompt)


def _published_questions(engine: FusionEngine, dataset: QADataset) -> list[Question]:
    catalog = engine.store.catalog
    make_prompt = partial(question_as_prompt, engine.model.tokenizer, instruction=BRIEFLY)
    return [
        context_question(
            engine,
            item.kind,
            item.question,
            item.answers,
            [i for document in item.context for i in catalog.chunks.ids([DocumentKey(document)])],
            MAX_TOKENS,
            make_prompt,
        )
        for item in dataset.items
    ]
