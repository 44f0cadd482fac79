"""Prompt text or messages -> tokens, with the runs whose KV is known.

The model's own template and tokenizer make the tokens, all at once; what is reused is decided
by comparing tokens through their character offsets, so a token that a boundary has changed is
computed afresh rather than guessed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.types import (
    AssembledPrompt,
    Chunk,
    EncodedChunk,
    KVHandle,
    Message,
    Prompt,
    Span,
    TextMatch,
)

NEUTRAL = "Answer the question from the context."
MIN_TOKENS = 16  # shorter runs are reused only where a handle names their chunk
MIN_QUESTION = 8  # of the user's tokens behind a chunk that the question may not only quote
_MARK = "\u2063chunk\u2063"  # stands for a chunk while a template is rendered


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model reads it. offsets: each token's character bounds in `text`.

    content_stop: the character behind the user's last word, where the template's own text ends
    the prompt.
    """

    text: str
    token_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    content_stop: int

    def position(self, character: int) -> int:
        """The first token that begins at this character or behind it."""
        return bisect_left(self.offsets, (character,))


def question_prompt(chunks: Sequence[str], question: str) -> list[Message]:
    """The messages that ask a question over chunks, where no framework words the prompt."""
    context = "\n\n".join(chunks)
    return [
        {"role": "system", "content": NEUTRAL},
        {"role": "user", "content": f"Context:\n{context}\n\nQuestion: {question}\nAnswer:"},
    ]


def ingest_prefix(tokenizer: Any) -> str:
    """The text before every chunk at ingest: a neutral prompt in the model's own template.

    Chunks prefilled without it collapse, because a prompt's first tokens draw attention that
    has nowhere else to go.
    """
    if tokenizer.chat_template is None:
        return f"{tokenizer.bos_token or ''}{NEUTRAL}\n\n"
    system: list[Message] = [
        {"role": "system", "content": NEUTRAL},
        {"role": "user", "content": _MARK},
    ]
    plain: list[Message] = [{"role": "user", "content": f"{NEUTRAL}\n\n{_MARK}"}]
    try:
        text = _apply(tokenizer, system)
    except TemplateError:  # some templates refuse a system message
        text = _apply(tokenizer, plain)
    if NEUTRAL not in text:  # and some drop it
        text = _apply(tokenizer, plain)
    return text[: text.index(_MARK)]


def encode(tokenizer: Any, prompt: Prompt) -> EncodedPrompt:
    """Tokens of a prompt. A string is one user message where the tokenizer has a chat template.

    Raises `InvalidInputError` for an empty or malformed prompt, and for messages where the
    tokenizer has no template for them.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InvalidInputError("The prompt is empty.")
        if tokenizer.chat_template is None:
            return _tokens(tokenizer, prompt, len(prompt), add_special_tokens=True)
        prompt = [{"role": "user", "content": prompt}]
    messages = _checked(prompt)
    if tokenizer.chat_template is None:
        raise InvalidInputError(
            "This model's tokenizer has no chat template, so messages can't be worded for it. "
            "Give the prompt as one string, or a tokenizer with a template."
        )
    try:
        text = _apply(tokenizer, messages, add_generation_prompt=True)
    except TemplateError as error:
        raise InvalidInputError(
            f"The model's chat template refuses these messages: {error}. Their roles are "
            f"{', '.join(message['role'] for message in messages)}."
        ) from error
    last = messages[-1]["content"].strip()
    at = text.rfind(last)
    stop = at + len(last) if at >= 0 else len(text)
    return _tokens(tokenizer, text, stop, add_special_tokens=False)


def encode_chunk(tokenizer: Any, chunk: Chunk) -> EncodedChunk:
    """A chunk's text alone in the model's tokens, without special ones."""
    encoding = tokenizer(chunk.text, add_special_tokens=False, return_offsets_mapping=True)
    return EncodedChunk(chunk, tuple(encoding.input_ids), _pairs(encoding.offset_mapping))


def assemble(
    encoded: EncodedPrompt, matches: Sequence[TextMatch], handles: Sequence[KVHandle] = ()
) -> AssembledPrompt:
    """Lay the matched chunks' tokens over the prompt's.

    A chunk's token is reused where the prompt has the same token at the same characters. A
    chunk of which fewer than `MIN_TOKENS` tokens can be reused needs a handle. The prompt's
    last token is always computed.

    A chunk that the user's question quotes belongs to the question and is computed afresh: one
    that stands earlier in the prompt too, with words that are no chunk's in between, and with
    fewer than `MIN_QUESTION` of the user's tokens behind it.
    """
    named = {handle.chunk_id for handle in handles}
    placed: list[tuple[TextMatch, list[Span]]] = []
    for match in matches:
        runs = _runs(encoded, match)
        if sum(run.length for run in runs) >= MIN_TOKENS or match.record.chunk.id in named:
            placed.append((match, runs))
    while _ends_in_quote(encoded, [match for match, _ in placed]):
        placed.pop()
    spans = tuple(span for _, runs in placed for span in runs)
    begin = spans[-1].stop if spans else 0
    end = max(begin, encoded.position(encoded.content_stop))
    if end == begin:  # the chunk is the user's last word: the template's own tokens must do
        end = len(encoded.token_ids)
    return AssembledPrompt(encoded.token_ids, spans, (begin, end))


def _runs(encoded: EncodedPrompt, match: TextMatch) -> list[Span]:
    """Maximal runs of one chunk's tokens that the prompt has too."""
    ids = match.record.encoded.token_ids
    bounds = tuple(
        [(low + match.start, high + match.start) for low, high in match.record.encoded.offsets]
    )
    count = len(ids)
    if match.stop - match.start < len(match.record.chunk.text):  # the prompt cuts it short
        count = next((i for i, (_, high) in enumerate(bounds) if high > match.stop), count)
    last = len(encoded.token_ids) - 1
    # A token may begin before its characters do where it carries the space before them.
    position = max(0, encoded.position(match.start) - 1)
    source = 0
    runs: list[Span] = []
    while source < count:
        # Several tokens may share one character's bounds; both sides list them in order.
        while position < last and encoded.offsets[position] < bounds[source]:
            position += 1
        if position >= last:
            break
        if (
            ids[source] != encoded.token_ids[position]
            or bounds[source] != encoded.offsets[position]
        ):
            source += 1
            continue
        length = min(count - source, last - position)
        here, there = slice(source, source + length), slice(position, position + length)
        length = equal_at_start(ids[here], encoded.token_ids[there])
        length = min(length, equal_at_start(bounds[here], encoded.offsets[there]))
        runs.append(Span(match.record, match.variant, source, position, length))
        source += length
        position += length
    return runs


def equal_at_start(one: tuple[object, ...], other: tuple[object, ...]) -> int:
    """How many of the first elements are equal."""
    if one == other:
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _ends_in_quote(encoded: EncodedPrompt, matches: Sequence[TextMatch]) -> bool:
    """Whether the last chunk is one that the user's question quotes; see `assemble`."""
    if not matches:
        return False
    last = matches[-1]
    behind = encoded.position(encoded.content_stop) - encoded.position(last.stop)
    text = last.record.chunk.text
    if behind >= MIN_QUESTION:
        return False
    first = next(i for i, match in enumerate(matches) if match.record.chunk.text == text)
    between = pairwise(matches[first:])
    gaps = (encoded.text[before.stop : after.start] for before, after in between)
    return any(character.isalpha() for gap in gaps for character in gap)


def _apply(tokenizer: Any, messages: Sequence[Message], **options: bool) -> str:
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    return text


def _tokens(
    tokenizer: Any, text: str, content_stop: int, *, add_special_tokens: bool
) -> EncodedPrompt:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"The prompt holds half a surrogate pair at character {error.start}."
        ) from error
    encoding = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    return EncodedPrompt(
        text, tuple(encoding.input_ids), _pairs(encoding.offset_mapping), content_stop
    )


def _pairs(offsets: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((start, stop) for start, stop in offsets)


def _checked(messages: Sequence[Message]) -> list[Message]:
    if not messages:
        raise InvalidInputError("The prompt holds no messages.")
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(field), str) for field in ("role", "content")
        ):
            raise InvalidInputError(
                f"A message must be a dictionary with the strings 'role' and 'content'; got "
                f"{message!r}."
            )
    if not any(message["content"].strip() for message in messages):
        raise InvalidInputError("The prompt's messages are all empty.")
    return list(messages)
