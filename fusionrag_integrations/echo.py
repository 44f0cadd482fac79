"""Which tokens of an answer say more than its question does.

A token that only repeats the question is easy under any KV: the question is computed afresh, and
what is copied from it is right whatever became of the chunks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+")


def counted_tokens(pieces: Sequence[str], question: str) -> list[int]:
    """The tokens that count, by their numbers: those beyond the question, or all if none is.

    pieces: what each token adds to the answer's text.
    """
    every = list(range(len(pieces)))
    return beyond(token_bounds(pieces), "".join(pieces), question) or every


def token_bounds(pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Each token's characters [start, stop). One that adds none belongs to the next character."""
    bounds: list[tuple[int, int]] = []
    start = 0
    for piece in pieces:
        bounds.append((start, start + max(1, len(piece))))
        start += len(piece)
    return bounds


def beyond(bounds: Sequence[tuple[int, int]], text: str, question: str) -> list[int]:
    """The tokens of a text that do more than repeat a question's words, by their numbers.

    A token repeats the question where it belongs to words, and all of them stand there.
    """
    asked = {word.casefold() for word in _WORD.findall(question)}
    words = [(word.span(), word[0].casefold() in asked) for word in _WORD.finditer(text)]
    repeated = [[known for span, known in words if overlap(span, own)] for own in bounds]
    return [i for i, known in enumerate(repeated) if not known or not all(known)]


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two stretches [start, stop) share a character."""
    return one[0] < other[1] and other[0] < one[1]
