"""The simulated workload: its shares, both ways' costs by hand, and what ours saves."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks import traffic as room
from benchmarks.traffic import Traffic, simulate
from fusionrag_integrations.errors import InvalidInputError


def test_chunks_come_in_the_papers_shares() -> None:
    questions = list(room.draw_questions(Traffic()))
    kinds = Counter(name.split()[0] for chunks in questions for name in chunks)
    assert len(questions) == 1000
    assert {len(chunks) for chunks in questions} == {len(set(c)) for c in questions} == {10}
    # A chunk is drawn once for a question, which leaves the unique ones a little more.
    for kind, share in room.SHARES.items():
        assert kinds[kind] / 10_000 == pytest.approx(share, abs=0.04)
    uses = Counter(name for chunks in questions for name in chunks)
    assert all(count == 1 for name, count in uses.items() if name.startswith("unique"))
    assert max(count for name, count in uses.items() if name.startswith("known")) > 50


def test_a_prefix_cache_finds_equal_beginnings() -> None:
    cost = room.cost_of_prefix_cache([["a", "b"], ["a", "c"], ["b", "a"], ["a", "b", "c"]])
    assert (cost.stored, cost.computed) == (6, 6)
    assert cost.hit_rate == pytest.approx(3 / 9)


def test_ours_stores_what_is_known_and_what_comes_twice() -> None:
    questions = [["known 0", "x"], ["x", "y"], ["x", "known 1"], ["known 0", "x"]]
    cost = room.cost_of_ours(questions, Traffic(known=2))
    assert cost.stored == 3
    assert (cost.computed, cost.ingested) == (3, 2)  # x twice, y once
    assert cost.hit_rate == pytest.approx(5 / 8)
    assert cost.recomputed == pytest.approx(0.15 * 5)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_papers_savings_are_reached(seed: int) -> None:
    result = simulate(Traffic(seed=seed))
    assert result["storage_saved"] >= 0.71
    assert result["computing_saved"] >= 0.80
    assert result["computing_saved_with_ingest"] >= 0.80
    assert result["ours"]["hit_rate"] >= 0.779


def test_traffic_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least one"):
        Traffic(questions=0)
