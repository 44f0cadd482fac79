"""Make the demo's corpus and questions: `python -m fusionrag_integrations.demo.make_corpus`.

Everything in them is about names that training never saw. Paragraphs are so long that at
`CHUNK_TOKENS` each becomes one chunk; so a sentence which refers back stands in another chunk than
what it refers to.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from fusionrag_integrations.demo import CORPUS_PATH, QUESTIONS_PATH
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


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", default="demo corpus")
    corpus, questions = make(parser.parse_args().seed)
    _write(CORPUS_PATH, corpus)
    _write(QUESTIONS_PATH, questions)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
