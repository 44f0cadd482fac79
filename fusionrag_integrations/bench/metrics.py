"""How right an answer is, by its words, and how much of full attention's lead a strategy keeps.

Exact match and F1 are SQuAD's (Rajpurkar et al., 2016), ROUGE-1 is Lin's (2004).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from fusionrag_integrations.errors import InvalidInputError

MIN_GAP = 0.2
"""The least difference in F1, of at most 1, to divide by: a ratio over less is mostly noise."""

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


def is_right(text: str, accepted: Sequence[str]) -> bool:
    """Whether an accepted answer stands in the text; see `find_answer`."""
    return find_answer(text, accepted) is not None


def find_answer(text: str, accepted: Sequence[str]) -> tuple[int, int] | None:
    """The characters [start, stop) of `text` where the first accepted answer that it holds stands.

    Both are normalised, and only whole words match. Punctuation around the answer isn't part of it.
    """
    words = [
        (word, written)
        for written in re.finditer(r"\S+", text)
        for word in normalise(written[0]).split()
    ]
    for wanted in (normalise(answer).split() for answer in accepted):
        for first in range(len(words) - len(wanted) + 1) if wanted else ():
            found = words[first : first + len(wanted)]
            if [word for word, _ in found] == wanted:
                return _stripped(text, found[0][1].start(), found[-1][1].end())
    return None


def rouge1(answer: str, accepted: Sequence[str]) -> float:
    """The best ROUGE-1 F-measure over the accepted answers: unigrams, articles included, unstemmed.

    It reads only the letters a to z and digits, so an answer in another script scores 0.
    Raises InvalidInputError where the library isn't installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError as error:
        raise InvalidInputError(
            "ROUGE needs rouge-score: pip install 'fusionrag-integrations[bench]'"
        ) from error
    scorer = RougeScorer(["rouge1"], use_stemmer=False)
    return _best(lambda truth: float(scorer.score(truth, answer)["rouge1"].fmeasure), accepted)


def normalised(f1: float, reuse: float, full: float) -> float | None:
    """The share of full attention's lead over plain reuse that a strategy keeps, by mean F1.

    0 is as good as reusing isolated KV without recomputing, 1 as full attention, and it can lie
    outside both. None where the lead `full - reuse` is below MIN_GAP.
    """
    return (f1 - reuse) / (full - reuse) if full - reuse >= MIN_GAP else None


def _stripped(text: str, start: int, stop: int) -> tuple[int, int]:
    """The same bounds without the punctuation at either end."""
    inside = text[start:stop].lstrip(string.punctuation)
    return stop - len(inside), stop - len(inside) + len(inside.rstrip(string.punctuation))


def _best(score: Callable[[str], float], accepted: Sequence[str]) -> float:
    return max(map(score, accepted), default=0.0)


def _f1(answer: list[str], truth: list[str]) -> float:
    if not answer or not truth:
        return float(answer == truth)
    common = sum((Counter(answer) & Counter(truth)).values())
    return 2 * common / (len(answer) + len(truth))
