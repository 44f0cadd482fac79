"""Which tokens of an answer count: worked out by hand."""

from __future__ import annotations

import pytest

from fusionrag_integrations.check.echo import beyond, counted_tokens, token_bounds

QUESTION = "Tia Rundo was born in which place?"


@pytest.mark.parametrize(
    ("pieces", "counted"),
    [
        (["Tia", " Rundo", " was", " born", " in", " Pel", "field", "."], [5, 6, 7]),
        (["tia", " RUNDO"], [0, 1]),  # nothing else is left
        (["tia", " RUNDO", ""], [2]),  # but the token that ends it
        (["Bor", "neo"], [0, 1]),  # begins like a word that was asked, and is another
        (["Run", "do", "'s"], [2]),
        (["in Pel", "field"], [0, 1]),  # of two words, one is new
    ],
)
def test_what_counts(pieces: list[str], counted: list[int]) -> None:
    assert counted_tokens(pieces, QUESTION) == counted


def test_a_token_that_adds_nothing_belongs_to_the_next_character() -> None:
    bounds = token_bounds(["", "é", "a"])
    assert bounds == [(0, 1), (0, 1), (1, 2)]
    assert beyond(bounds, "éa", "éa?") == []
    assert beyond(bounds, "éa", "a?") == [0, 1, 2]
