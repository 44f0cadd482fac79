"""Documents and questions -> training batches.

All questions about one context share its tokens; a mask and positions make each see only the
context and itself, directly behind the context. So every question is asked alone, and many are
learned for the price of one context:

tokens     context ........... | question 1 ... answer | question 2 ... answer | padding
positions  0 ............. C-1 | C ....                | C ....                |
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, get_args

import torch

from fusionrag_integrations.demo.prompts import PromptFormat
from fusionrag_integrations.demo.world import (
    QuestionKind,
    Style,
    WorldDocument,
    WorldQuestion,
    build_world,
)

IGNORED = -100
CONTEXT, PADDING = 0, -1
# Kinds take turns; back references, the hardest to learn, come twice.
TURNS: tuple[QuestionKind, ...] = ("bridge", "back_reference", "single_hop", "back_reference")


@dataclass(frozen=True, slots=True)
class Packed:
    """One context with its questions.

    segments: 0 for the context, i for question i. labels: the next token where it is an
    answer's, else -100. hints: what would stand next inside the question, else -100.
    """

    token_ids: list[int]
    positions: list[int]
    segments: list[int]
    labels: list[int]
    hints: list[int]
    questions: list[WorldQuestion]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Tensors [B, T] of packed contexts, and the attention mask [B, 1, T, T] (true: attends)."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    labels: torch.Tensor
    hints: torch.Tensor
    mask: torch.Tensor


def pack(
    tokenizer: Any,
    documents: list[WorldDocument],
    questions: list[WorldQuestion],
    form: PromptFormat | None,
) -> Packed:
    """Pack questions behind their context; without a format, each is its bare cloze."""
    paragraphs = [p for d in documents for p in d.paragraphs]
    head, tails = _render(tokenizer, paragraphs, questions, form)
    encode = tokenizer.backend_tokenizer.encode
    end = tokenizer.eos_token_id
    ids = encode(head, add_special_tokens=False).ids
    start = len(ids)
    positions, segments = list(range(start)), [CONTEXT] * start
    labels, hints = [IGNORED] * start, [IGNORED] * start
    encodings = tokenizer.backend_tokenizer.encode_batch(
        [*tails, *(q.answer for q in questions), *(a for q in questions for _, a in q.hops)],
        add_special_tokens=False,
    )
    count = len(questions)
    hop_answers = iter(encodings[2 * count :])
    for number, (question, tail) in enumerate(zip(questions, tails, strict=True), start=1):
        asked, answer = encodings[number - 1], encodings[count + number - 1].ids
        at = tail.index(question.cloze)
        stops = {stop: i for i, (_, stop) in enumerate(asked.offsets)}
        hint = [IGNORED] * (len(asked.ids) + len(answer))
        for stop, _ in question.hops:
            hint[stops[at + stop]] = next(hop_answers).ids[0]
        label = [IGNORED] * (len(asked.ids) - 1) + [*answer, end]
        if form is None:
            hint = [h if a == IGNORED else IGNORED for h, a in zip(hint, label, strict=True)]
        piece = [*asked.ids, *answer]
        ids += piece
        positions += range(start, start + len(piece))
        segments += [number] * len(piece)
        labels += label
        hints += hint
    return Packed(ids, positions, segments, labels, hints, questions)


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
    """Pad samples to one length."""
    width = max(len(s.token_ids) for s in samples)

    def rows(lists: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([x + [fill] * (width - len(x)) for x in lists])

    positions = rows([s.positions for s in samples], 0)
    segments = rows([s.segments for s in samples], PADDING)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    same = segments[:, :, None] == segments[:, None, :]
    to_context = (segments == CONTEXT)[:, None, :]
    mask = (same | to_context) & causal
    return Batch(
        rows([s.token_ids for s in samples], pad_id),
        positions,
        segments,
        rows([s.labels for s in samples], IGNORED),
        rows([s.hints for s in samples], IGNORED),
        mask[:, None],
    )


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
