"""Tokens + matched chunks -> the runs of tokens whose KV is known.

What is reused is decided by comparing tokens through their character offsets, so a token that a
boundary has changed is computed afresh rather than guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.prompt.assembled import AssembledPrompt, Span, TextMatch
from fusionrag_integrations.prompt.tokenize import EncodedPrompt

MIN_TOKENS = 16  # shorter runs are reused only where a handle names their chunk
MIN_QUESTION = 8  # tokens of the user's after a chunk; with fewer, the question may quote it


def assemble(
    encoded: EncodedPrompt, matches: Sequence[TextMatch], handles: Sequence[KVHandle] = ()
) -> AssembledPrompt:
    """Find the tokens of the prompt that are those of the matched chunks.

    A chunk's token is reused where the prompt has the same token at the same characters. A
    chunk of which fewer than `MIN_TOKENS` tokens can be reused needs a handle. The prompt's
    last token is always computed.

    A chunk that the user's question quotes belongs to the question and is computed afresh: one
    that occurs earlier in the prompt too, with words outside chunks in between, and with fewer
    than `MIN_QUESTION` of the user's tokens after it.
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
    if end == begin:  # the chunk ends the user's text: the template's own tokens must do
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


def equal_at_start(one: Sequence[object], other: Sequence[object]) -> int:
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
    after = encoded.position(encoded.content_stop) - encoded.position(last.stop)
    text = last.record.chunk.text
    if after >= MIN_QUESTION:
        return False
    first = next(i for i, match in enumerate(matches) if match.record.chunk.text == text)
    between = pairwise(matches[first:])
    gaps = (encoded.text[one.stop : other.start] for one, other in between)
    return any(character.isalpha() for gap in gaps for character in gap)
