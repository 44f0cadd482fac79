"""A harder suite than the demo's: eleven kinds of question, each hard in one way, with contexts.

Names, worlds and contexts are new to the model. Each context fits a prompt of at most
`PROMPT_TOKENS` of the model's tokens, which training went up to.

crowded         many documents say the same of others: two wordings a kind of subject
many_documents  about twice as many documents, in short paragraphs
long_chunks     few documents, in long paragraphs
new_wordings    in words that training never saw together
shuffled        paragraphs of all documents in random order, so that most pronouns have lost the
                name before them; full attention is misled, too
changed_fact    two documents about the subject state the fact, and the later one counts; training
                never taught that
two_antecedents a bridge over two facts, both stated by pronoun; training never taught that, and
                the model mostly fails
shared_names    others whose names share a part with the subject's are said the same of by pronoun
repeated        the paragraphs of the document asked about, and others, stand twice
name_left_out   the paragraph that names the subject is not in the context, only the one that states
                the fact by pronoun: full attention can't know whom it is about
unanswerable    the context doesn't hold the answer. The model never refuses, so it is always
                wrong; the kind shows whether a strategy says something else than full attention
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from fusionrag_integrations.demo.hard_worlds import (
    Asked,
    Maker,
    back_references,
    bridges,
    changed_facts,
    crowded,
    shared_names,
    unstated_facts,
)
from fusionrag_integrations.demo.world import Style, WorldDocument
from fusionrag_integrations.documents.types import Document, Passage
from fusionrag_integrations.errors import InvalidInputError

PROMPT_TOKENS = 2_500
REPEATS = 4  # paragraphs, beside those of the document asked about, that stand twice

_Paragraph = tuple[int, int]  # number of the document, number in it
_Block = list[_Paragraph]
_Order = Callable[[random.Random, list[_Block], Asked], Iterable[_Paragraph]]


@dataclass(frozen=True, slots=True)
class HardQuestion:
    """A question with its accepted answers, and what to answer from.

    context: document ids and paragraph numbers, in the prompt's order. Repeats are meant.
    """

    kind: str
    question: str
    answers: tuple[str, ...]
    context: tuple[tuple[str, int], ...]


def _whole(draw: random.Random, documents: list[_Block], asked: Asked) -> Iterable[_Paragraph]:
    return chain(*documents)


def _shuffled(draw: random.Random, documents: list[_Block], asked: Asked) -> Iterable[_Paragraph]:
    paragraphs = list(chain(*documents))
    draw.shuffle(paragraphs)
    return paragraphs


def _repeated(draw: random.Random, documents: list[_Block], asked: Asked) -> Iterable[_Paragraph]:
    paragraphs = list(chain(*documents))
    gold = [p for p in paragraphs if p[0] in asked.gold]
    others = [p for p in paragraphs if p[0] not in asked.gold]
    blocks = [*documents, *([p] for p in gold + draw.sample(others, REPEATS))]
    draw.shuffle(blocks)
    return chain(*blocks)


def _nameless(draw: random.Random, documents: list[_Block], asked: Asked) -> Iterable[_Paragraph]:
    kept = [[p for p in block if p[0] not in asked.gold] for block in documents]
    stating = [[(number, asked.paragraph)] for number in asked.gold]
    blocks = [*filter(None, kept), *stating]
    draw.shuffle(blocks)
    return chain(*blocks)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a kind is made. paragraphs: how many of different text a context holds."""

    paragraphs: int
    fillers: tuple[int, int] = (5, 6)
    wordings: int | None = 2
    held_out_wordings: bool = False
    world: Maker = back_references
    order: _Order = _whole

    @property
    def style(self) -> Style:
        return Style(
            held_out_names=True,
            held_out_wordings=self.held_out_wordings,
            fillers=self.fillers,
            wordings=self.wordings,
            bridges_by_name=False,
        )


_RECIPES = {
    "crowded": _Recipe(24, world=crowded),
    "many_documents": _Recipe(52, fillers=(2, 3)),
    "long_chunks": _Recipe(12, fillers=(12, 14)),
    "new_wordings": _Recipe(24, wordings=None, held_out_wordings=True),
    "shuffled": _Recipe(24, order=_shuffled),
    "changed_fact": _Recipe(24, world=changed_facts),
    "two_antecedents": _Recipe(24, wordings=None, world=bridges),
    "shared_names": _Recipe(24, world=shared_names),
    "repeated": _Recipe(18, order=_repeated),
    "name_left_out": _Recipe(24, order=_nameless),
    "unanswerable": _Recipe(24, wordings=4, world=unstated_facts),
}
HARD_KINDS = tuple(_RECIPES)


def build_hard_suite(
    seed: str, questions_a_kind: int, kinds: Sequence[str] = HARD_KINDS
) -> tuple[list[Document], list[HardQuestion]]:
    """Documents, and so many questions of each kind over them; the same ones each time.

    A document's passages are its paragraphs, each of which becomes one chunk however short it is.
    More questions only add to fewer: worlds are written one after another until they hold enough.

    Raises InvalidInputError for an unknown kind.
    """
    if unknown := [kind for kind in kinds if kind not in _RECIPES]:
        raise InvalidInputError(
            f"Unknown kinds {', '.join(unknown)}; known are {', '.join(HARD_KINDS)}."
        )
    documents: list[Document] = []
    questions: list[HardQuestion] = []
    for kind in kinds:
        wanted = len(questions) + questions_a_kind
        world = 0
        while len(questions) < wanted:
            draw = random.Random(f"{seed}:{kind}:{world}")
            made, asked = _write_world(draw, kind, f"{kind}-{world}")
            documents += made
            questions += asked[: wanted - len(questions)]
            world += 1
    return documents, questions


def _write_world(
    draw: random.Random, kind: str, name: str
) -> tuple[list[Document], list[HardQuestion]]:
    recipe = _RECIPES[kind]
    written, all_asked = recipe.world(draw, recipe.style)
    ids = [f"{name}-{number}" for number in range(len(written))]
    documents = [
        Document(i, title=d.subject.name, passages=tuple(Passage(p) for p in d.paragraphs))
        for i, d in zip(ids, written, strict=True)
    ]
    draw.shuffle(all_asked)
    questions = []
    for asked in all_asked:
        chosen = _choose(draw, recipe.paragraphs, written, asked)
        blocks = [[(n, p) for p in range(len(written[n].paragraphs))] for n in chosen]
        context = tuple((ids[n], p) for n, p in recipe.order(draw, blocks, asked))
        questions.append(HardQuestion(kind, asked.question, (asked.answer,), context))
    return documents, questions


def _choose(
    draw: random.Random, room: int, documents: Sequence[WorldDocument], asked: Asked
) -> list[int]:
    """A prompt's documents in random order, but those that answer the question in theirs."""
    needed = (*asked.gold, *asked.near)
    others = [n for n in range(len(documents)) if n not in needed]
    draw.shuffle(others)
    chosen: list[int] = []
    for number in (*needed, *others):
        length = len(documents[number].paragraphs)
        if length <= room:
            chosen.append(number)
            room -= length
    draw.shuffle(chosen)
    gold = iter(asked.gold)
    return [next(gold) if n in asked.gold else n for n in chosen]
