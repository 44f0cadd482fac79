"""Cache-Craft's numbers by hand, from attention matrices, and what its selection makes of them."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionrag_integrations.documents.chunk_record import ChunkRecord, ContextTrace
from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.selectors import make_selector
from fusionrag_integrations.selectors.cache_craft import (
    cache_context_impact,
    prefix_overlap,
    share_out,
)
from tests.selectors.made import known, prompt_with, traced

# Three tokens behind a prefix of one token and neighbours p (two tokens) and q (one).
MATRIX = (
    # prefix  p    p    q    the chunk itself
    (0.1, 0.2, 0.2, 0.1, 0.4, 0.0, 0.0),
    (0.2, 0.1, 0.1, 0.1, 0.3, 0.2, 0.0),
    (0.3, 0.1, 0.0, 0.1, 0.1, 0.2, 0.2),
)


def trace_of(matrix: tuple[tuple[float, ...], ...], bounds: tuple[int, ...]) -> ContextTrace:
    """What fusing would note. bounds: where the neighbours begin, and at last the chunk."""
    edges = list(pairwise(bounds))
    return ContextTrace(
        sensitivity=(0.0,) * len(matrix),
        outside=tuple(sum(row[bounds[0] : bounds[-1]]) for row in matrix),
        inside=tuple(sum(row[bounds[-1] :]) for row in matrix),
        neighbours=tuple("pqrs"[: len(edges)]),
        by_neighbour=tuple(
            sum(sum(row[low:high]) for row in matrix) / len(matrix) for low, high in edges
        ),
        neighbour_tokens=bounds[-1] - bounds[0],
    )


def test_context_impact_by_hand() -> None:
    trace = trace_of(MATRIX, (1, 3, 4))
    assert trace.outside == pytest.approx((0.5, 0.3, 0.2))
    assert trace.by_neighbour == pytest.approx((0.7 / 3, 0.1))
    a = 1.0 / 9  # nine pairs of a token with a neighbour's
    b = 1.4 / 6  # six causal pairs within the chunk
    assert cache_context_impact(trace) == pytest.approx(1 / (1 + math.exp(-a / b)))
    assert cache_context_impact(trace) == pytest.approx(0.61685, abs=1e-5)


def test_context_impact_of_a_loop_over_pairs() -> None:
    """The same numbers from the single pairs of the matrix."""
    outside = [row[key] for row in MATRIX for key in (1, 2, 3)]
    inside = [MATRIX[i][4 + j] for i in range(3) for j in range(i + 1)]
    mean = [sum(values) / len(values) for values in (outside, inside)]
    expected = 1 / (1 + math.exp(-mean[0] / mean[1]))
    assert cache_context_impact(trace_of(MATRIX, (1, 3, 4))) == pytest.approx(expected)


def test_context_impact_at_its_ends() -> None:
    nothing_outside = traced([0.0] * 3, [0.0] * 3, neighbours=("p",), by_neighbour=(0.0,))
    assert cache_context_impact(nothing_outside) == 0.5
    nothing_inside = traced([0.0], [1.0], inside=(0.0,), neighbour_tokens=2)
    assert cache_context_impact(nothing_inside) == 1.0
    rather_outside = traced([0.0], [0.99], inside=(1e-6,), neighbour_tokens=2)
    assert cache_context_impact(rather_outside) == pytest.approx(1.0)


OVERLAPPING = traced([0.0], neighbours=("p", "q", "r"), by_neighbour=(0.5, 0.3, 0.1))


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (["p", "q", "r"], 1.0),
        (["x", "p", "y", "q", "r", "z"], 1.0),  # others change nothing
        (["x", "y"], 0.0),
        ([], 0.0),
        (["r", "q", "p"], 0.0),  # all three pairs swapped
        (["q", "p", "r"], 2 / 3),  # one of three
        (["r", "p", "q"], 1 / 3),  # two of three
        (["r"], 0.1 / 0.9),
        (["p", "r"], 0.6 / 0.9),
        (["r", "x", "p"], 0.0),
        (["q", "r"], 0.4 / 0.9),
    ],
)
def test_prefix_overlap_by_hand(before: list[str], expected: float) -> None:
    assert prefix_overlap(OVERLAPPING, before) == pytest.approx(expected)


def test_prefix_overlap_where_nothing_was_looked_at() -> None:
    trace = traced([0.0], neighbours=("p", "q"), by_neighbour=(0.0, 0.0))
    assert prefix_overlap(trace, ["p", "q"]) == 0.0


def sorting_steps(items: list[int]) -> int:
    """Swaps of neighbours that put a list in order: as many as it has pairs in the wrong order."""
    items, steps = list(items), 0
    for _ in items:
        for i in range(len(items) - 1):
            if items[i] > items[i + 1]:
                items[i], items[i + 1] = items[i + 1], items[i]
                steps += 1
    return steps


def test_prefix_overlap_of_all_orders() -> None:
    weights = (0.4, 0.05, 0.3, 0.2)
    trace = traced([0.0], neighbours=tuple("pqrs"), by_neighbour=weights)
    for count in range(1, 5):
        pairs = count * (count - 1) / 2
        for order in permutations(range(4), count):
            kept = 1 - sorting_steps(list(order)) / pairs if pairs else 1.0
            expected = sum(weights[i] for i in order) / sum(weights) * kept
            assert prefix_overlap(trace, ["pqrs"[i] for i in order]) == pytest.approx(expected)


SHARES = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 40)), min_size=1, max_size=8)


@given(SHARES, st.floats(0, 1))
def test_a_share_out_spends_the_budget_within_the_sizes(
    shares: list[tuple[float, int]], ratio: float
) -> None:
    wanted, sizes = zip(*shares, strict=True)
    budget = int(ratio * sum(sizes))
    counts = share_out(budget, wanted, sizes)
    assert sum(counts) == budget
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    for i, (want, size) in enumerate(shares):  # more wanted, at least as much given
        for j in range(len(shares)):
            if want > wanted[j] and size >= sizes[j]:
                assert counts[i] >= counts[j]


@given(st.integers(1, 8), st.integers(0, 200), st.sampled_from([0.0, 0.3, 7.0]))
def test_equal_shares_differ_by_one(chunks: int, budget: int, want: float) -> None:
    counts = share_out(min(budget, 30 * chunks), [want] * chunks, [30] * chunks)
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("budget", "wanted", "sizes", "expected"),
    [
        (0, [1, 2], [5, 5], [0, 0]),
        (9, [1, 2], [9, 9], [3, 6]),
        (9, [2, 1], [4, 9], [4, 5]),  # the first is full, the rest goes on
        (12, [5, 1, 4], [2, 9, 9], [2, 2, 8]),  # 10 are left for the others, 1 : 4
        (5, [0, 3], [9, 9], [0, 5]),
        (12, [0, 3, 0], [9, 9, 9], [2, 9, 1]),  # what isn't wanted gets what is left over
        (18, [0, 3], [9, 9], [9, 9]),
    ],
)
def test_share_out_by_hand(budget: int, wanted: list, sizes: list, expected: list) -> None:
    assert share_out(budget, wanted, sizes) == expected


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        (49, [90, 2, 2, 2, 2, 2]),  # wants 44.1 and 0.98 each; the first gets all 49
        (15, [10, 1, 1, 1, 1, 1, 1]),  # 9.4 and 0.94 each; 15 and none
        (20, [30.0, 19, 19, 19, 19]),  # 5.7 and 3.6 each
    ],
)
def test_a_share_is_proportional_within_one(budget: int, wanted: list[float]) -> None:
    counts = share_out(budget, wanted, [100] * len(wanted))
    for want, count in zip(wanted, counts, strict=True):
        assert abs(count - budget * want / sum(wanted)) < 1


A, D = known("a", 12), known("d", 12)
OUTSIDE = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 0.1, 0.95, 0.2, 0.85, 0.3, 0.75, 0.4]


def chunk_b(neighbours: tuple[str, ...], by_neighbour: tuple[float, ...]) -> ContextTrace:
    """16 tokens with OUTSIDE, and as much inside as makes CCI 3/4: exp(-a/b) is 1/3."""
    a = sum(OUTSIDE) / (16 * 20)
    inside = a / math.log(3) * (16 * 17 / 2)
    return ContextTrace(
        (0.0,) * 16, tuple(OUTSIDE), (inside / 16,) * 16, neighbours, by_neighbour, 20
    )


B = known("b", 16, chunk_b(("iso-a",), (0.5,)))


def chosen(order: str, budget: int, variant: KVKind, b: ChunkRecord = B) -> dict[str, list[int]]:
    """Which of each chunk's own tokens are selected, of chunks that stand in this order."""
    records = {"a": A, "d": D, "b": b}
    runs, at, begins = [], 1, {}
    for name in order:
        count = len(records[name].encoded.token_ids)
        begins[name] = range(at, at + count)
        runs.append((records[name], 0, at, count))
        at += count + 1
    prompt = prompt_with(runs, at + 4, variant=variant)
    ratio = (budget + 0.5) / len(prompt.chunk_positions)
    positions = make_selector("cache_craft", ratio).select(prompt, None).positions
    assert len(positions) == budget
    return {name: [p - at[0] for p in positions if p in at] for name, at in begins.items()}


def most_outside(count: int) -> list[int]:
    return sorted(sorted(range(16), key=lambda i: -OUTSIDE[i])[:count])


def test_a_chunk_never_fused_is_all_in_need_and_gives_its_first_tokens() -> None:
    """a wants all of its 12 tokens, and b of its 16 three quarters: 12 too."""
    assert chosen("ab", 14, "isolated") == {"a": [*range(7)], "b": most_outside(7)}


def test_a_chunk_behind_what_it_was_fused_behind_needs_nothing() -> None:
    assert chosen("ab", 11, "fused") == {"a": [*range(11)], "b": []}
    assert chosen("ab", 15, "fused") == {"a": [*range(12)], "b": most_outside(3)}


def test_the_order_of_what_stands_before_a_chunk_counts() -> None:
    b = known("b", 16, chunk_b(("iso-a", "iso-d"), (0.3, 0.2)))
    assert chosen("adb", 14, "fused", b) == {"a": [*range(7)], "d": [*range(7)], "b": []}
    first, third = [*range(5)], most_outside(5)
    assert chosen("dab", 15, "fused", b) == {"d": first, "a": first, "b": third}


def test_what_stands_behind_a_chunk_is_no_prefix_of_it() -> None:
    assert chosen("ba", 14, "fused") == {"a": [*range(7)], "b": most_outside(7)}


def test_isolated_kv_holds_no_context_that_could_be_there_again() -> None:
    assert chosen("ab", 14, "fused") != chosen("ab", 14, "isolated")
    assert chosen("ba", 14, "fused") == chosen("ba", 14, "isolated")


def test_a_part_of_the_prefix_counts_by_its_attention() -> None:
    """Four fifths are there again: b wants 16 x 3/4 x 1/5 = 2.4 against 12; 13 are 10.8 and 2.2."""
    b = known("b", 16, chunk_b(("iso-a", "iso-z"), (0.4, 0.1)))
    assert chosen("ab", 13, "fused", b) == {"a": [*range(11)], "b": most_outside(2)}


def test_a_cut_chunk_in_two_runs_keeps_its_own_numbers() -> None:
    """Tokens 3 to 7 and 9 to 13 of b alone: the five that looked most at others are taken."""
    prompt = prompt_with([(B, 3, 2, 5), (B, 9, 7, 5)], 20)
    positions = make_selector("cache_craft", 0.5).select(prompt, None).positions
    own = {2 + i: 3 + i for i in range(5)} | {7 + i: 9 + i for i in range(5)}
    expected = sorted(sorted(own, key=lambda p: -OUTSIDE[own[p]])[:5])
    assert list(positions) == expected
