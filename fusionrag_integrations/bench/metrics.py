"""Exact match and F1 as SQuAD defines them (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1.0 where the normalised answer equals one of the accepted, else 0.0."""
    return _best(lambda truth: float(normalise(answer) == normalise(truth)), accepted)


def f1(answer: str, accepted: Sequence[str]) -> float:
    """The best harmonic mean of token precision and recall over the accepted answers."""
    return _best(lambda truth: _f1(normalise(answer).split(), normalise(truth).split()), accepted)


def _best(score: Callable[[str], float], accepted: Sequence[str]) -> float:
    return max(map(score, accepted), default=0.0)


def _f1(answer: list[str], truth: list[str]) -> float:
    if not answer or not truth:
        return float(answer == truth)
    common = sum((Counter(answer) & Counter(truth)).values())
    return 2 * common / (len(answer) + len(truth))
