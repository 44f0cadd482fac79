"""This package's own prompt for a question over chunks, and the ingest prefix: how it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from fusionrag_integrations.errors import UnsupportedModelError
from fusionrag_integrations.prompt.messages import Message, Prompt
from fusionrag_integrations.prompt.template import MARK, apply, with_fixed_clock

NEUTRAL = "Answer the question from the context."
BRIEFLY = "Answer in as few words as possible."
CONTEXT = "Context:\n"
SEPARATOR = "\n\n"
"""What chains put between chunks, and ingest between a chunk and its neighbours."""


def question_prompt(chunks: Sequence[str], question: str, instruction: str = "") -> list[Message]:
    """The messages that ask a question over chunks, where no framework writes the prompt.

    instruction: how to answer, on a line before the question.
    """
    context = SEPARATOR.join(chunks)
    asked = f"Question: {question}\nAnswer:"
    if instruction:
        asked = f"{instruction}\n{asked}"
    return [
        {"role": "system", "content": NEUTRAL},
        {"role": "user", "content": f"{CONTEXT}{context}\n\n{asked}"},
    ]


def question_as_prompt(
    tokenizer: Any, chunks: Sequence[str], question: str, instruction: str = ""
) -> Prompt:
    """Like `question_prompt`, as one string where the tokenizer has no template for messages."""
    messages = question_prompt(chunks, question, instruction)
    if tokenizer.chat_template is None:
        return "\n\n".join(message["content"] for message in messages)
    return messages


def ingest_prefix(tokenizer: Any) -> str:
    """The text before every chunk at ingest: what `question_prompt` puts before the first one.

    It is the same on every day, even if the template writes the date. It is needed because a
    prompt's first tokens draw attention that has nowhere else to go: without a prefix, those would
    be the chunk's own.
    """
    if tokenizer.chat_template is None:
        return f"{tokenizer.bos_token or ''}{NEUTRAL}\n\n{CONTEXT}"
    system: list[Message] = [
        {"role": "system", "content": NEUTRAL},
        {"role": "user", "content": f"{CONTEXT}{MARK}"},
    ]
    plain: list[Message] = [{"role": "user", "content": f"{NEUTRAL}\n\n{CONTEXT}{MARK}"}]
    template = with_fixed_clock(tokenizer)
    for messages in (system, plain):  # some templates refuse a system message, and some drop it
        failed: TemplateError | None = None
        try:
            text = apply(tokenizer, messages, chat_template=template)
        except TemplateError as error:
            failed = error
            continue
        if NEUTRAL in text and MARK in text:
            return text[: text.index(MARK)]
    raise UnsupportedModelError(
        f"The model's chat template can't be used: {failed or 'it leaves out what messages say'}. "
        "Take the template that the model was published with."
    ) from failed


def ingest_surroundings(tokenizer: Any) -> str:
    """All text around a chunk at ingest, which its KV depends on."""
    return ingest_prefix(tokenizer) + SEPARATOR
