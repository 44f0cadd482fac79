"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from random import Random

import pytest

from fusionrag_integrations.serving.stops import StopMatcher


@pytest.mark.parametrize("seed", range(200))
def test_as_a_search_of_the_whole_text(seed: int) -> None:
    chosen = Random(seed)

    def some(most: int) -> str:
        return "".join(chosen.choice("abc") for _ in range(chosen.randint(1, most)))

    stop = [some(6) for _ in range(chosen.randint(1, 4))]
    matcher, text = StopMatcher(stop), ""
    while len(text) < 40:
        piece = some(4)
        text += piece
        found = matcher.feed(piece)
        starts = [at for at in map(text.find, stop) if at >= 0]
        assert found == min(starts, default=None)
        if found is not None:
            return
        assert matcher.length == len(text)
        begun = [at for at in range(len(text)) if any(s.startswith(text[at:]) for s in stop)]
        assert matcher.certain == min(begun, default=len(text))


def test_without_stop_strings_all_is_certain() -> None:
    matcher = StopMatcher(())
    assert matcher.feed("text") is None
    assert matcher.certain == matcher.length == 4
