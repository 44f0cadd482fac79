"""Metrics on cases worked by hand."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionrag_integrations.bench.metrics import (
    MIN_GAP,
    exact_match,
    f1,
    find_answer,
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


@pytest.mark.parametrize(
    ("text", "accepted", "found"),
    [
        ("It is Lonvale.", ["lonvale"], "Lonvale"),
        ("It is Lonvale.", ["The Lonvale!"], "Lonvale"),
        ("in the Brask  Works, they say", ["Brask Works"], "Brask  Works"),
        ("the Old the Mill", ["old mill"], "Old the Mill"),  # articles count for nothing
        ("(U.S.)", ["us"], "U.S"),
        ('He said "no".', ["No"], "no"),
        ("Arctic and Antarctic", ["antarctic"], "Antarctic"),
        ("Antarctic", ["arctic"], None),  # only whole words
        ("Works of Brask", ["Brask Works"], None),
        ("Brask", ["Brask Works"], None),
        ("2010", ["10"], None),
        ("10 of 2010", ["10"], "10"),
        ("Tolen, or Mira Tolen", ["Mira Tolen", "Tolen"], "Mira Tolen"),  # the first accepted one
        ("Tolen then Tolen", ["Tolen"], "Tolen"),
        ("", ["Tolen"], None),
        ("Tolen", [], None),
        ("a the", ["The", "A!"], None),  # an answer without words is nowhere
    ],
)
def test_where_an_accepted_answer_stands(text: str, accepted: list[str], found: str | None) -> None:
    place = find_answer(text, accepted)
    assert (None if place is None else text[slice(*place)]) == found


WORDS = st.lists(
    st.sampled_from(
        ["the", "a", "An", "Old", "old", "mill", "U.S.", "-", "co-op", "İ", "ΟΔΟΣ", "x"]
    )
)


@given(WORDS, WORDS, st.sampled_from([" ", "  ", ", ", "\n", "—"]))
def test_it_is_found_where_the_normalised_text_holds_it(
    text: list[str], answer: list[str], between: str
) -> None:
    """By the other way round: search in the normalised text, between its spaces."""
    written, wanted = between.join(text), " ".join(answer)
    held = bool(normalise(wanted)) and f" {normalise(wanted)} " in f" {normalise(written)} "
    place = find_answer(written, [wanted])
    assert (place is not None) == held
    if place is not None:
        assert normalise(written[slice(*place)]) == normalise(wanted)
