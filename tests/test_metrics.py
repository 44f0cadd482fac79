"""Metrics on cases worked by hand."""

from __future__ import annotations

import sys

import pytest

from fusionrag_integrations.bench.metrics import (
    MIN_GAP,
    exact_match,
    f1,
    normalise,
    normalised,
    rouge1,
)
from fusionrag_integrations.errors import InvalidInputError


def test_normalise() -> None:
    assert normalise(" The  Lonvale,\n a Town! ") == "lonvale town"


@pytest.mark.parametrize(
    ("answer", "accepted", "em", "score"),
    [
        ("Lonvale.", ["lonvale"], 1.0, 1.0),
        ("in Lonvale", ["Lonvale"], 0.0, 2 / 3),
        ("Brask", ["Mira Tolen", "the Brask Works"], 0.0, 2 / 3),
        ("", ["Lonvale"], 0.0, 0.0),
        ("x x", ["x"], 0.0, 2 / 3),
        ("nothing alike", ["Lonvale"], 0.0, 0.0),
    ],
)
def test_scores(answer: str, accepted: list[str], em: float, score: float) -> None:
    assert exact_match(answer, accepted) == em
    assert f1(answer, accepted) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "accepted", "score"),
    [
        ("Lonvale.", ["lonvale"], 1.0),
        ("the Brask Works", ["Mira Tolen", "Brask Works"], 4 / 5),  # articles count, unlike in F1
        ("works", ["work"], 0.0),  # unstemmed
        ("a a b", ["a b b"], 2 / 3),  # each word as often as in both
        ("", ["Lonvale"], 0.0),
        ("Lonvale", [], 0.0),
        ("東京", ["東京"], 0.0),
    ],
)
def test_rouge1(answer: str, accepted: list[str], score: float) -> None:
    pytest.importorskip("rouge_score")
    assert rouge1(answer, accepted) == pytest.approx(score)


def test_rouge1_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(InvalidInputError, match=r"fusionrag-integrations\[bench\]"):
        rouge1("a", ["a"])


@pytest.mark.parametrize(
    ("score", "expected"), [(0.2, 0.0), (0.6, 1.0), (0.5, 0.75), (0.1, -0.25), (0.7, 1.25)]
)
def test_normalised(score: float, expected: float) -> None:
    assert normalised(score, reuse=0.2, full=0.6) == pytest.approx(expected)


def test_normalised_needs_a_gap() -> None:
    assert normalised(0.1, reuse=0.0, full=MIN_GAP) == pytest.approx(0.5)
    assert normalised(0.1, reuse=0.0, full=MIN_GAP - 1e-9) is None
    assert normalised(0.5, reuse=0.6, full=0.2) is None
