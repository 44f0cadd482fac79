"""Which tokens of an answer do more than repeat its question.

A token that repeats the question is easy under any KV: the question is always computed afresh, and
what is copied from it is right whatever the chunks' KV.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+")


def counted_tokens(pieces: Sequence[str], question: str) -> list[int]:
    """Indices of the tokens that count: those beyond the question, or all if none is.

    pieces: the text that each token adds to the answer.
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
    """Indices of a text's tokens that do more than repeat the words of a question.

    A token repeats the question if it belongs to words, and the question has all of them.
    """
    asked = {word.casefold() for word in _WORD.findall(question)}
    words = [(word.span(), word[0].casefold() in asked) for word in _WORD.finditer(text)]
    repeated = [[known for span, known in words if overlap(span, token)] for token in bounds]
    return [i for i, known in enumerate(repeated) if not known or not all(known)]


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two stretches [start, stop) share a character."""
    return one[0] < other[1] and other[0] < one[1]
