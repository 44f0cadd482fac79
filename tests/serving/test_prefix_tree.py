"""Beginnings of prompts in a radix tree, beside a plain list of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionrag_integrations.serving.prefix_tree import PrefixTree

BYTES = 2 * 2 * 3 * 4 * 4  # of a token: keys and values [2, 3, 1, 4] in float32


def kv_of(token_ids: Sequence[int], positions: range) -> tuple[torch.Tensor, torch.Tensor]:
    """What a token's KV is follows from all tokens up to it, as a model's does."""
    sums = torch.tensor([hash(tuple(token_ids[: p + 1])) % 1000 for p in positions]).float()
    keys = sums[None, None, :, None].expand(2, 3, len(positions), 4).clone()
    return keys, -keys


def keep(tree: PrefixTree, token_ids: Sequence[int], root: object = None) -> None:
    tree.add(root, token_ids, lambda positions: kv_of(token_ids, positions))


def check(tree: PrefixTree, token_ids: Sequence[int], root: object = None) -> int:
    """How many tokens it knows; their KV is right."""
    start = 0
    for piece in tree.find(root, token_ids):
        places = range(start, start + piece.length)
        keys, values = kv_of(token_ids, places)
        torch.testing.assert_close(piece.keys[:, :, : piece.length], keys, rtol=0, atol=0)
        torch.testing.assert_close(piece.values[:, :, : piece.length], values, rtol=0, atol=0)
        start += piece.length
    return start


def held(tree: PrefixTree, prompts: Sequence[Sequence[int]]) -> int:
    """Different beginnings of these prompts that it knows."""
    known = {tuple(p[: i + 1]) for p in prompts for i in range(check(tree, p))}
    return len(known)


prompts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=12)


@given(kept=prompts, asked=prompts)
def test_it_knows_the_longest_beginning(kept: list[list[int]], asked: list[list[int]]) -> None:
    tree = PrefixTree(1 << 20)
    for one in kept:
        keep(tree, one)
    for one in [*asked, *kept]:
        same = [
            next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
            for other in kept
        ]
        lengths = [
            min(len(one), len(other)) if at is None else at
            for at, other in zip(same, kept, strict=True)
        ]
        assert check(tree, one) == max(lengths, default=0)
    assert tree.used == BYTES * held(tree, kept)


@given(kept=prompts, room=st.integers(0, 12))
def test_it_holds_no_more_than_its_budget_and_the_last_ones(
    kept: list[list[int]], room: int
) -> None:
    tree = PrefixTree(room * BYTES)
    for one in kept:
        before = check(tree, one)
        keep(tree, one)
        assert tree.used <= tree.budget
        if len(one) <= room:
            assert check(tree, one) == len(one)  # older ones give way
        else:
            assert check(tree, one) in (before, *range(len(one)))
    assert tree.used == BYTES * held(tree, kept)


def test_what_was_used_last_is_evicted_last() -> None:
    tree = PrefixTree(4 * BYTES)
    keep(tree, [1, 2])
    keep(tree, [3, 4])
    assert check(tree, [1, 2]) == 2
    keep(tree, [5, 6])
    assert [check(tree, ids) for ids in ([1, 2], [3, 4], [5, 6])] == [2, 0, 2]


def test_roots_are_apart() -> None:
    tree = PrefixTree(1 << 20)
    keep(tree, [1, 2, 3], "board")
    assert check(tree, [1, 2, 3], "public") == check(tree, [1, 2, 3]) == 0
    assert check(tree, [1, 2, 3], "board") == 3


def test_what_is_known_is_not_read_again() -> None:
    tree = PrefixTree(1 << 20)
    keep(tree, [1, 2, 3])
    read: list[range] = []

    def watched(positions: range) -> tuple[torch.Tensor, torch.Tensor]:
        read.append(positions)
        return kv_of([1, 2, 3, 4], positions)

    tree.add(None, [1, 2, 3, 4], watched)
    tree.add(None, [1, 2, 3, 4], watched)
    assert read == [range(3, 4)]


def test_an_edge_that_was_split_frees_its_memory() -> None:
    """Halves of one tensor would keep each other's memory."""
    tree = PrefixTree(1 << 20)
    keep(tree, range(100))
    keep(tree, [0, 7])
    for piece in tree.find(None, range(100)):
        assert piece.keys.untyped_storage().nbytes() == piece.keys.nbytes
