"""Documents and questions -> training batches.

All questions about one context share it: each sees the context and itself, and stands directly
behind the context. So every question is asked alone, and many are learned for the price of one
context:

tokens     context ..... padding | question 1 ... answer, padding | question 2 ... | ...
positions  0 ............... C-1 | its context's length, ...      | the same       |
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import torch

from benchmarks.demo_model.prompts import PromptFormat
from fusionrag_integrations.demo.world import (
    Fact,
    QuestionKind,
    Style,
    WorldDocument,
    WorldQuestion,
    build_world,
)

IGNORED = -100
# Kinds take turns; back references, the hardest to learn, come twice.
TURNS: tuple[QuestionKind, ...] = ("bridge", "back_reference", "single_hop", "back_reference")


@dataclass(frozen=True, slots=True)
class Labels:
    """What is to be learned at a piece's tokens, by index of the token.

    answers: the answer's next token. hints: what would stand next if a question's clause were a
    statement. subjects: both tokens of the name of whom the clause is about that ends here or
    whose answer begins here; first for first hops, then for second ones.
    """

    answers: dict[int, int] = field(default_factory=dict)
    hints: dict[int, int] = field(default_factory=dict)
    subjects: tuple[dict[int, tuple[int, int]], ...] = field(default_factory=lambda: ({}, {}))


@dataclass(frozen=True, slots=True)
class Look:
    """From which token of a question to look at which of the context, or of the question itself.

    step 0: from the first clause's end to where its answer stands in the context. step 1: the
    same for the second clause, and from each token of the answer to the one behind it. step 2:
    from the question's end to its last clause's end, where the answer is known by then.
    """

    step: int
    token: int
    at: int
    in_context: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens with what they teach: a context, or a question with its answer."""

    token_ids: list[int]
    labels: Labels
    looks: list[Look]


@dataclass(frozen=True, slots=True)
class Packed:
    """One context with its questions."""

    context: Piece
    asked: list[Piece]
    questions: list[WorldQuestion]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B packed contexts of C tokens, each with N questions of Q tokens; T = C + N * Q.

    token_ids, positions: [B, T]. answers, hints: [B, T], subjects by number of the hop:
    [2, B, T, 2], all of them -100 where there is nothing to tell. looks: for every step [B, M, 2],
    which token looks at which, -100 as padding. in_context: [B, C], false on padding. size: Q.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor
    hints: torch.Tensor
    subjects: torch.Tensor
    looks: tuple[torch.Tensor, ...]
    in_context: torch.Tensor
    size: int


def pack(
    tokenizer: Any,
    documents: list[WorldDocument],
    questions: list[WorldQuestion],
    form: PromptFormat | None,
) -> Packed:
    """Pack questions behind their context; without a format, each is its bare cloze."""
    paragraphs = [p for d in documents for p in d.paragraphs]
    head, tails = _render(tokenizer, paragraphs, questions, form)
    facts = [fact for document in documents for fact in document.facts]
    words = list(dict.fromkeys(text for f in facts for text in (f.subject.name, f.answer)))
    context, *encodings = tokenizer.backend_tokenizer.encode_batch(
        [head, *tails, *words], add_special_tokens=False
    )
    asked, known = encodings[: len(tails)], encodings[len(tails) :]
    ids = {word: encoding.ids for word, encoding in zip(words, known, strict=True)}
    names = {f.subject.name: (ids[f.subject.name][0], ids[f.subject.name][1]) for f in facts}

    ends, labels = _ends(context), Labels()
    begins: dict[Fact, int] = {}  # the token where a fact's answer begins
    for at, fact in _statements(head, documents):
        begins[fact] = ends[at] + 1
        for token in (ends[at], ends[at] + 1):
            labels.subjects[0][token] = names[fact.subject.name]
    packed = Packed(Piece(context.ids, labels, []), [], questions)
    for question, tail, encoding in zip(questions, tails, asked, strict=True):
        ends, start, last = _ends(encoding), tail.index(question.cloze), len(encoding.ids) - 1
        answer = ids[question.answer]
        labels = Labels(dict(enumerate([*answer, tokenizer.eos_token_id], start=last)))
        looks: list[Look] = []
        for number, hop in enumerate(question.hops):
            token, at = ends[start + hop.stop], begins[hop.fact]
            labels.subjects[number][token] = names[hop.fact.subject.name]
            looks.append(Look(number, token, at, in_context=True))
            if token != last:  # a bare cloze ends where its answer begins
                labels.hints[token] = ids[hop.fact.answer][0]
        if token != last:
            looks.append(Look(2, last, token, in_context=False))
        looks += [Look(1, last + i, at + i, in_context=True) for i in range(1, len(answer))]
        packed.asked.append(Piece([*encoding.ids, *answer], labels, looks))
    return packed


def _ends(encoding: Any) -> dict[int, int]:
    """The token that ends at a character."""
    return {stop: token for token, (_, stop) in enumerate(encoding.offsets)}


def _statements(head: str, documents: list[WorldDocument]) -> Iterator[tuple[int, Fact]]:
    """Every fact of the context, and the character behind which its answer stands."""
    at = 0
    for document in documents:
        for number, paragraph in enumerate(document.paragraphs):
            at = head.index(paragraph, at)
            for fact in document.facts:
                if fact.paragraph == number:
                    start = at + paragraph.index(f"{fact.lead} {fact.answer}.")
                    yield start + len(fact.lead), fact
            at += len(paragraph)


def _render(
    tokenizer: Any,
    paragraphs: list[str],
    questions: list[WorldQuestion],
    form: PromptFormat | None,
) -> tuple[str, list[str]]:
    """The text up to the end of the context, and what follows it for each question."""
    if form is None:
        return tokenizer.bos_token + "\n\n".join(paragraphs), [f"\n\n{q.cloze}" for q in questions]
    mark = "\x00"
    whole = tokenizer.apply_chat_template(
        form.messages(paragraphs, mark), tokenize=False, add_generation_prompt=True
    )
    cut = whole.rindex(paragraphs[-1]) + len(paragraphs[-1])
    return whole[:cut], [whole[cut:].replace(mark, q.text) for q in questions]


def collate(samples: list[Packed], pad_id: int) -> Batch:
    """Pad contexts to one length, and questions to one length and number."""
    width = max(len(s.context.token_ids) for s in samples)
    size = max(len(piece.token_ids) for s in samples for piece in s.asked)
    length = width + size * max(len(s.asked) for s in samples)
    shape = (len(samples), length)
    token_ids, positions = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
    answers, hints = torch.full(shape, IGNORED), torch.full(shape, IGNORED)
    subjects = torch.full((2, *shape, 2), IGNORED)
    looks: list[list[list[tuple[int, int]]]] = [[[] for _ in samples] for _ in range(3)]
    in_context = torch.zeros(len(samples), width, dtype=torch.bool)
    for row, sample in enumerate(samples):
        context = len(sample.context.token_ids)
        in_context[row, :context] = True
        starts = [0, *(width + size * number for number in range(len(sample.asked)))]
        firsts = [0, *[context] * len(sample.asked)]
        for piece, start, first in zip(
            [sample.context, *sample.asked], starts, firsts, strict=True
        ):
            count = len(piece.token_ids)
            token_ids[row, start : start + count] = torch.tensor(piece.token_ids)
            positions[row, start : start + count] = torch.arange(first, first + count)
            labels = piece.labels
            _fill(answers[row, start:], labels.answers)
            _fill(hints[row, start:], labels.hints)
            for hop, names in enumerate(labels.subjects):
                _fill(subjects[hop, row, start:], names)
            for look in piece.looks:
                at = look.at if look.in_context else start + look.at
                looks[look.step][row].append((start + look.token, at))
    return Batch(
        token_ids,
        positions,
        answers,
        hints,
        subjects,
        tuple(_padded(of_step) for of_step in looks),
        in_context,
        size,
    )


def _fill(tokens: torch.Tensor, labels: Mapping[int, int | tuple[int, int]]) -> None:
    if labels:
        tokens[list(labels)] = torch.tensor(list(labels.values()))


def _padded(rows: list[list[tuple[int, int]]]) -> torch.Tensor:
    """[rows, longest row, 2], filled with -100."""
    padded = torch.full((len(rows), max(map(len, rows)), 2), IGNORED)
    for number, row in enumerate(rows):
        if row:
            padded[number, : len(row)] = torch.tensor(row)
    return padded


def draw_sample(
    draw: random.Random,
    tokenizer: Any,
    documents: int,
    style: Style,
    form: PromptFormat | None,
    most_questions: int,
    bridges: bool,
) -> Packed:
    """A fresh world of `documents`, with up to `most_questions` of its questions, kinds mixed."""
    while True:
        world, questions = build_world(draw, documents, style)
        questions = [q for q in questions if bridges or q.kind != "bridge"]
        if questions:
            break
    draw.shuffle(questions)
    waiting = {kind: [q for q in questions if q.kind == kind] for kind in get_args(QuestionKind)}
    chosen: list[WorldQuestion] = []
    while len(chosen) < most_questions and any(waiting.values()):
        for kind in TURNS:
            if waiting[kind] and len(chosen) < most_questions:
                chosen.append(waiting[kind].pop())
    return pack(tokenizer, world, chosen, form)
