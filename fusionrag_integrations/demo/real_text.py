"""Real text: paragraphs of Wikipedia, and questions that SmolLM2 answers under full attention.

wikipedia/ATTRIBUTION.md says where they are from, and how the questions were chosen.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.suites import context_question
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.prompt import BRIEFLY, question_as_prompt

_DIRECTORY = Path(__file__).parent / "wikipedia"
PARAGRAPHS_PATH = _DIRECTORY / "paragraphs.jsonl"
QUESTIONS_PATH = _DIRECTORY / "questions.jsonl"
CHUNK_TOKENS = 350  # no paragraph is longer: each is one document and one chunk
HITS = 60  # enough to find all paragraphs
CHUNKS = 6  # to a prompt: about 1,000 tokens
MAX_TOKENS = 24  # all right answers are there by then
CANDIDATES = 100  # questions that SmolLM2 was asked under full attention
NOTE = (
    f"The questions were chosen among {CANDIDATES} because SmolLM2 answers them under full "
    "attention, not by how reuse does on them."
)


def load_questions(engine: FusionEngine, limit: int | None = None) -> list[Question]:
    """The first `limit` questions of the file, each over the chunks that the engine finds for it.

    The engine must have ingested paragraphs. Raises `InvalidInputError` where the model's context
    holds too few tokens.
    """
    rows = [json.loads(line) for line in QUESTIONS_PATH.read_text(encoding="utf-8").splitlines()]
    return [
        context_question(
            engine,
            "wikipedia",
            row["question"],
            tuple(row["answers"]),
            _nearest(engine, row["question"]),
            MAX_TOKENS,
            partial(question_as_prompt, engine.model.tokenizer, instruction=BRIEFLY),
        )
        for row in rows[:limit]
    ]


def _nearest(engine: FusionEngine, question: str) -> list[str]:
    """Ids of the chunks that are found, best first; of equally good ones the same each time."""
    hits = engine.store.search(question, HITS)
    hits.sort(key=lambda hit: (-round(hit.score, 6), hit.chunk.document_id))
    return [hit.chunk.id for hit in hits[:CHUNKS]]
