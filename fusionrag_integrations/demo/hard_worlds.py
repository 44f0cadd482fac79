"""Worlds for the hard suite: documents, and questions that are hard in them.

Each maker writes one world of about `DOCUMENTS` documents. All of them are about names that
training never saw.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fusionrag_integrations.demo.names import PLACE_ENDINGS, Entity, draw_entity, is_held_out
from fusionrag_integrations.demo.relations import ASK, Relation
from fusionrag_integrations.demo.world import (
    QuestionKind,
    Style,
    WorldDocument,
    WorldQuestion,
    ask_all,
    build_world,
    write_document,
)

DOCUMENTS = 40
NEAREST = 4  # other documents in a prompt that state the asked-for fact of their subjects
FAMILY = 6  # subjects that share a name, the asked one among them
UNANSWERABLE = "unanswerable"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and the documents, by number, that a prompt must hold to ask it.

    gold: those that answer it, in the order that the prompt keeps.
    near: distractors that make it hard. paragraph: where the only one of `gold` states the answer.
    """

    question: str
    answer: str
    gold: tuple[int, ...]
    near: tuple[int, ...] = ()
    paragraph: int = 0


World = tuple[list[WorldDocument], list[Asked]]
Maker = Callable[[random.Random, Style], World]


def back_references(draw: random.Random, style: Style) -> World:
    """The world as it is, with its questions about what is stated by pronoun."""
    documents, questions = build_world(draw, DOCUMENTS, style)
    return documents, _asked(draw, documents, _of_kind("back_reference", questions, style))


def crowded(draw: random.Random, style: Style) -> World:
    """The questions about what is stated by pronoun in at least `NEAREST` other documents."""
    documents, asked = back_references(draw, style)
    return documents, [one for one in asked if len(one.near) == NEAREST]


def bridges(draw: random.Random, style: Style) -> World:
    """The world as it is, with its questions about two documents."""
    documents, questions = build_world(draw, DOCUMENTS, style)
    return documents, _asked(draw, documents, _of_kind("bridge", questions, style))


def changed_facts(draw: random.Random, style: Style) -> World:
    """Each subject has two documents, and the later one states the same with other answers."""
    earlier, _ = build_world(draw, DOCUMENTS // 2, style)
    later = [write_document(draw, d.subject, style, _relations(d)) for d in earlier]
    documents = [*earlier, *later]
    asked = []
    for question in _of_kind("back_reference", ask_all(draw, later, style), style):
        (hop,) = question.hops
        number = next(n for n, d in enumerate(later) if d.subject == hop.fact.subject)
        before = {f.answer for f in earlier[number].facts if f.relation == hop.fact.relation}
        if question.answer not in before:
            gold = (number, len(earlier) + number)
            near = _near(draw, documents, hop.fact.relation, gold)
            asked.append(Asked(question.text, question.answer, gold, near))
    return documents, asked


def shared_names(draw: random.Random, style: Style) -> World:
    """Families of subjects that share a part of their names, and say the same by pronoun.

    People share the given name or the surname, others the kind or the ending: few held-out names
    have the same stem.
    """
    founders, _ = build_world(draw, DOCUMENTS // FAMILY, style)
    taken = {founder.subject.name for founder in founders}
    documents: list[WorldDocument] = []
    asked = []
    for founder in founders:
        family = [founder]
        share_first = founder.subject.kind == "person" and draw.random() < 0.5
        while len(family) < FAMILY:
            subject = _namesake(draw, founder.subject, share_first)
            relative = write_document(draw, subject, style, _relations(founder))
            if subject.name not in taken and _referring(relative) == _referring(founder):
                family.append(relative)
                taken.add(subject.name)
        questions = ask_all(draw, family, style)
        numbers = range(len(documents), len(documents) + FAMILY)
        documents += family
        for one in _asked(draw, documents, _of_kind("back_reference", questions, style)):
            asked.append(replace(one, near=tuple(n for n in numbers if n not in one.gold)))
    return documents, asked


def unstated_facts(draw: random.Random, style: Style) -> World:
    """Questions about subjects of the world whose answer is stated of others, not of them."""
    documents, _ = build_world(draw, DOCUMENTS, style)
    known = list(dict.fromkeys(r for d in documents for r in _relations(d)))
    asked = []
    for number, document in enumerate(documents):
        kind, own = document.subject.kind, _relations(document)
        for relation in known:
            if relation.subject == kind and relation not in own:
                ask = draw.choice(ASK[relation.answer])
                question = f"{document.subject.name} {relation.verb} {ask}?"
                near = _near(draw, documents, relation, (number,))
                asked.append(Asked(question, UNANSWERABLE, (number,), near))
    return documents, asked


def _of_kind(
    kind: QuestionKind, questions: Sequence[WorldQuestion], style: Style
) -> list[WorldQuestion]:
    """Those of a kind; where wordings may be new, only those in new wordings."""
    return [q for q in questions if q.kind == kind and q.new_wording == style.held_out_wordings]


def _asked(
    draw: random.Random, documents: Sequence[WorldDocument], questions: Sequence[WorldQuestion]
) -> list[Asked]:
    """The questions, with the documents that answer them in random order."""
    number = {document.id: n for n, document in enumerate(documents)}
    asked = []
    for question in questions:
        gold = [number[i] for i in question.documents]
        draw.shuffle(gold)
        fact = question.hops[-1].fact
        near = _near(draw, documents, fact.relation, gold)
        asked.append(Asked(question.text, question.answer, tuple(gold), near, fact.paragraph))
    return asked


def _near(
    draw: random.Random,
    documents: Sequence[WorldDocument],
    relation: Relation,
    gold: Sequence[int],
) -> tuple[int, ...]:
    """Up to `NEAREST` others that state the same of their subjects by pronoun."""
    others = [n for n, d in enumerate(documents) if n not in gold and relation in _referring(d)]
    return tuple(draw.sample(others, min(NEAREST, len(others))))


def _relations(document: WorldDocument) -> list[Relation]:
    return [fact.relation for fact in document.facts]


def _referring(document: WorldDocument) -> set[Relation]:
    """What the document states by pronoun."""
    return {fact.relation for fact in document.facts if fact.askable and not fact.by_name}


def _namesake(draw: random.Random, entity: Entity, share_first: bool) -> Entity:
    """Another of the same kind, whose name has the same first or second part."""
    first, second = _parts(entity)
    while True:
        other = draw_entity(draw, entity.kind, held_out=True)
        other_first, other_second = _parts(other)
        if share_first:
            made = Entity(entity.kind, first + other_second, entity.pronoun)
        else:
            made = Entity(entity.kind, other_first + second, other.pronoun)
        if is_held_out(made.name) and made.name != entity.name:
            return made


def _parts(entity: Entity) -> tuple[str, str]:
    """Both parts of a name, which joined make the name."""
    if entity.kind == "place":
        ending = next(e for e in PLACE_ENDINGS if entity.name.endswith(e))
        return entity.name.removesuffix(ending), ending
    first, second = entity.name.split(" ")
    return f"{first} ", second
