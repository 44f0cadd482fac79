"""Templated English about invented people, companies, places and things, with questions.

A document is about one subject. Its first paragraph names the subject; later ones mostly refer
back to it by pronoun, so that a paragraph read alone doesn't say whom it is about.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

from fusionrag_integrations.demo.names import Entity, EntityKind, draw_entity
from fusionrag_integrations.demo.relations import (
    ASK,
    BRIDGE_WORD,
    FILLER_MENTIONS,
    FILLER_SCENES,
    FILLER_STARTS,
    RELATIONS,
    WORDS,
    AnswerKind,
    Relation,
)

QuestionKind = Literal["single_hop", "back_reference", "bridge"]


@dataclass(frozen=True, slots=True)
class Fact:
    """`<subject> <verb> <answer>`, stated in one paragraph by name or by pronoun.

    `askable` is false where the pronoun's antecedent isn't in the paragraph just before.
    `paragraph` is the number, from 0, of the one that states it.
    """

    subject: Entity
    relation: Relation
    answer: str
    answer_entity: Entity | None
    by_name: bool
    askable: bool
    paragraph: int

    @property
    def lead(self) -> str:
        """What stands before the answer."""
        return f"{self.subject.name if self.by_name else self.subject.pronoun} {self.relation.verb}"


@dataclass(frozen=True, slots=True)
class WorldDocument:
    """A subject's document: paragraphs of text, and the facts that they state."""

    subject: Entity
    paragraphs: tuple[str, ...]
    facts: tuple[Fact, ...]

    @property
    def id(self) -> str:
        return self.subject.name.lower().replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Hop:
    """A clause of a question, and the fact that it asks for.

    It ends with the first `stop` characters of the question, where the fact's answer would stand.
    """

    fact: Fact
    stop: int


@dataclass(frozen=True, slots=True)
class WorldQuestion:
    """A question: `cloze` up to where the answer would stand, and what it asks for there."""

    kind: QuestionKind
    cloze: str
    ask: str
    answer: str
    hops: tuple[Hop, ...]
    documents: tuple[str, ...]
    new_wording: bool

    @property
    def text(self) -> str:
        return f"{self.cloze} {self.ask}?"


@dataclass(frozen=True, slots=True)
class Style:
    """How documents are written. Fillers are sentences a paragraph, drawn from the range.

    wordings: how many wordings a kind of subject has in one world. With few, many documents say
    the same of different subjects, and only the subject tells them apart.
    bridges_by_name: whether both facts of a bridge are stated by name, or both by pronoun.
    """

    held_out_names: bool
    held_out_wordings: bool
    fillers: tuple[int, int]
    paragraphs: tuple[int, int] = (2, 3)
    wordings: int | None = None
    bridges_by_name: bool = True

    def joins(self, fact: Fact) -> bool:
        """Whether a bridge may use this fact."""
        return fact.askable and fact.by_name == self.bridges_by_name

    def usable(self, draw: random.Random) -> dict[EntityKind, list[Relation]]:
        """The wordings of one world by kind of subject."""
        found: dict[EntityKind, list[Relation]] = {}
        for kind in get_args(EntityKind):
            all_of_kind = [
                r
                for r in RELATIONS
                if r.subject == kind and (self.held_out_wordings or not r.held_out)
            ]
            if self.wordings is None or self.wordings >= len(all_of_kind):
                found[kind] = all_of_kind
            else:
                found[kind] = draw.sample(all_of_kind, self.wordings)
        return found


def build_world(
    draw: random.Random, count: int, style: Style
) -> tuple[list[WorldDocument], list[WorldQuestion]]:
    """`count` documents with distinct subjects, and every question that they answer.

    Some documents are about a person that another document names, which makes bridges.
    """
    usable = style.usable(draw)
    documents: list[WorldDocument] = []
    wanted: list[Entity] = []  # people that a document named and that have none of their own
    taken: set[str] = set()
    while len(documents) < count:
        if wanted and draw.random() < 0.7:
            subject = wanted.pop(draw.randrange(len(wanted)))
        else:
            kinds: tuple[EntityKind, ...] = ("person", "company", "place", "thing")
            kind = draw.choices(kinds, (4, 3, 2, 2))[0]
            subject = draw_entity(draw, kind, style.held_out_names)
        if subject.name in taken:
            continue
        taken.add(subject.name)
        document = write_document(draw, subject, style, usable[subject.kind])
        documents.append(document)
        if subject.kind != "person":
            wanted += [
                f.answer_entity
                for f in document.facts
                if style.joins(f)
                and f.answer_entity is not None
                and f.answer_entity.kind == "person"
            ]
    draw.shuffle(documents)
    return documents, ask_all(draw, documents, style)


def write_document(
    draw: random.Random, subject: Entity, style: Style, usable: list[Relation]
) -> WorldDocument:
    """A document about `subject` that states some of the facts `usable`, up to five."""
    relations = draw.sample(usable, min(len(usable), 5))
    facts: list[Fact] = []
    paragraphs: list[str] = []
    named_before = False
    for number in range(draw.randint(*style.paragraphs)):
        if not relations:
            break
        by_name = number == 0 or draw.random() < 0.2
        stated = []
        for position in range(1 if len(relations) < 3 or draw.random() < 0.6 else 2):
            relation = relations.pop()
            answer, entity = _answer(draw, relation.answer, style.held_out_names)
            use_name = by_name and position == 0
            # A pronoun behind a name in its own paragraph is neither kind of question.
            askable = use_name or (not by_name and named_before)
            fact = Fact(subject, relation, answer, entity, use_name, askable, number)
            facts.append(fact)
            stated.append(f"{fact.lead} {answer}.")
        count = draw.randint(*style.fillers)
        fillers = [_filler(draw, subject, style.held_out_names) for _ in range(count)]
        before = draw.randint(0, len(fillers))
        paragraphs.append(" ".join([*fillers[:before], *stated, *fillers[before:]]))
        named_before = by_name
    return WorldDocument(subject, tuple(paragraphs), tuple(facts))


def _answer(draw: random.Random, kind: AnswerKind, held_out: bool) -> tuple[str, Entity | None]:
    if kind == "person" or kind == "place" or kind == "company":
        entity = draw_entity(draw, kind, held_out)
        return entity.name, entity
    return " ".join(draw.choice(column) for column in WORDS[kind]), None


def _filler(draw: random.Random, subject: Entity, held_out: bool) -> str:
    clause = draw.choice(FILLER_SCENES)
    if draw.random() < 0.3:
        kind: EntityKind = (
            draw.choice(("place", "company")) if subject.kind == "person" else "person"
        )
        entity = draw_entity(draw, kind, held_out)
        clause = draw.choice(FILLER_MENTIONS[kind]).format(name=entity.name)
    return f"{draw.choice(FILLER_STARTS)} {clause}."


def ask_all(
    draw: random.Random, documents: list[WorldDocument], style: Style
) -> list[WorldQuestion]:
    """Every question that the documents answer."""
    questions: list[WorldQuestion] = []
    of_person = {d.subject.name: d for d in documents if d.subject.kind == "person"}
    for document in documents:
        for fact in document.facts:
            if not fact.askable:
                continue
            cloze = f"{fact.subject.name} {fact.relation.verb}"
            questions.append(
                WorldQuestion(
                    kind="single_hop" if fact.by_name else "back_reference",
                    cloze=cloze,
                    ask=draw.choice(ASK[fact.relation.answer]),
                    answer=fact.answer,
                    hops=(Hop(fact, len(cloze)),),
                    documents=(document.id,),
                    new_wording=fact.relation.held_out,
                )
            )
            person = of_person.get(fact.answer) if document.subject.kind != "person" else None
            if person is None or not style.joins(fact):
                continue
            for second in person.facts:
                if style.joins(second):
                    questions.append(_bridge(draw, document, fact, person, second))
    return questions


def _bridge(
    draw: random.Random, document: WorldDocument, first: Fact, person: WorldDocument, second: Fact
) -> WorldQuestion:
    head = f"{first.subject.name} {first.relation.verb}"
    cloze = f"{head} {BRIDGE_WORD} {second.relation.verb}"
    return WorldQuestion(
        kind="bridge",
        cloze=cloze,
        ask=draw.choice(ASK[second.relation.answer]),
        answer=second.answer,
        hops=(Hop(first, len(head)), Hop(second, len(cloze))),
        documents=(document.id, person.id),
        new_wording=first.relation.held_out or second.relation.held_out,
    )
