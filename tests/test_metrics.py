"""SQuAD's metrics on cases worked by hand."""

from __future__ import annotations

import pytest

from fusionrag_integrations.bench.metrics import exact_match, f1, normalise


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
