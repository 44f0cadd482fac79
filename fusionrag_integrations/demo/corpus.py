"""The demo's corpus and questions, of any seed.

Everything in them is about names that training never saw. Paragraphs are so long that at
`CHUNK_TOKENS` each becomes one chunk; so a sentence which refers back stands in another chunk than
what it refers to.
"""

from __future__ import annotations

import random
from typing import Any, get_args

from fusionrag_integrations.demo.world import QuestionKind, Style, build_world

DOCUMENTS = 320
QUESTIONS_A_KIND = 100
STYLE = Style(held_out_names=True, held_out_wordings=False, fillers=(5, 6))


def make(
    seed: str, documents: int = DOCUMENTS, questions_a_kind: int = QUESTIONS_A_KIND
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the corpus, of `documents` or as many as it takes, and of the questions."""
    draw = random.Random(seed)
    world, questions = build_world(draw, documents, STYLE)
    by_kind = {k: [q for q in questions if q.kind == k] for k in get_args(QuestionKind)}
    if min(map(len, by_kind.values())) < questions_a_kind:
        return make(seed, documents + documents // 4 + 1, questions_a_kind)
    chosen = [
        q for all_of_kind in by_kind.values() for q in draw.sample(all_of_kind, questions_a_kind)
    ]
    corpus = [
        {"id": d.id, "title": d.subject.name, "text": "\n\n".join(d.paragraphs)} for d in world
    ]
    return corpus, [
        {
            "kind": q.kind,
            "question": q.text,
            "answers": [q.answer],
            "documents": list(q.documents),
        }
        for q in chosen
    ]
