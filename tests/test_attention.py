"""Attention weights against loops, in shapes where heads, rows and keys can't be mixed up."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.selectors.attention_weights import logits, weights
from fusionrag_integrations.selectors.probe import LayerView

ROWS, KEYS, SIZE = 3, 7, 5


def view_of(heads: int, kv_heads: int, dtype: torch.dtype = torch.float32) -> LayerView:
    """Rows at positions 2, 4 and 6 that see no further back than four tokens."""
    draw = torch.Generator().manual_seed(heads * 10 + kv_heads)
    return LayerView(
        queries=torch.randn(heads, ROWS, SIZE, generator=draw).to(dtype) * 2,
        keys=torch.randn(kv_heads, KEYS, SIZE, generator=draw).to(dtype),
        positions=torch.tensor([2, 4, 6]),
        spec=AttentionSpec(0.7, window=4),
    )


def test_what_a_layer_says_of_its_attention() -> None:
    view = view_of(4, 2)
    assert (view.scaling, view.window) == (0.7, 4)
    assert replace(view, spec=AttentionSpec(0.5)).window is None


def product(view: LayerView, head: int, row: int, key: int, group: int) -> float:
    query, other = view.queries[head, row].tolist(), view.keys[head // group, key].tolist()
    return 0.7 * sum(q * k for q, k in zip(query, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (3, 1)])
def test_logits_and_weights_against_loops(heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    view = view_of(heads, kv_heads, dtype)
    given, soft = logits(view), weights(view)
    assert given.dtype == soft.dtype == torch.float32
    assert given.shape == soft.shape == (heads, ROWS, KEYS)
    for head in range(heads):
        for row, position in enumerate((2, 4, 6)):
            own = [product(view, head, row, key, heads // kv_heads) for key in range(KEYS)]
            assert given[head, row].tolist() == pytest.approx(own, abs=1e-5)
            seen = [key for key in range(KEYS) if position - 4 < key <= position]
            total = sum(math.exp(own[key]) for key in seen)
            expected = [math.exp(own[key]) / total if key in seen else 0.0 for key in range(KEYS)]
            assert soft[head, row].tolist() == pytest.approx(expected, abs=1e-6)


def test_weights_add_up_to_one_over_what_is_seen_and_nothing_else_counts() -> None:
    view = view_of(4, 2)
    soft = weights(view)
    torch.testing.assert_close(soft.sum(-1), torch.ones(4, ROWS))
    view.keys[:, 0] = torch.inf  # only the first row sees it
    changed = weights(view)
    assert torch.equal(changed[:, 1:], soft[:, 1:])
    assert (changed[:, 1:, 0] == 0.0).all()


def test_a_view_is_left_as_it_was() -> None:
    view = view_of(4, 2)
    before = [t.clone() for t in (view.queries, view.keys, view.positions)]
    weights(view)
    for now, then in zip((view.queries, view.keys, view.positions), before, strict=True):
        assert torch.equal(now, then)
