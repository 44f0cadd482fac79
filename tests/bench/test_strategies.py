"""Which ways to answer are compared, and what each asks of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest

from fusionrag_integrations.bench import strategies
from fusionrag_integrations.bench.strategies import (
    BASELINES,
    DEFAULT_STRATEGIES,
    PUBLISHED_KV,
    SELECTING,
    STRATEGY_NAMES,
    PlacedKV,
    Strategy,
    make_strategies,
)
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.selectors import selector_names
from fusionrag_integrations.serving.settings import AnswerSettings

FULL = ("full_attention", "none", 1.0)
REUSE = ("full_reuse", "isolated", 0.0)
BOTH = ("isolated", "fused")


def made(
    names: Sequence[str], ratios: Sequence[float] = (0.1,), kinds: Sequence[str] = BOTH
) -> list[tuple[str, str, float]]:
    return [(s.name, s.kv, s.ratio) for s in make_strategies(names, ratios, kinds)]


def test_every_combination_comes_once() -> None:
    found = made(("random", "full_reuse", "prefix_cache", "epic"), (0.0, 0.2, 1.0))
    assert found[:2] == [FULL, REUSE]
    assert len(found) == len(set(found)) == 2 + 1 + 1 + 2 * 2 * 3
    assert set(found) == {
        FULL,
        REUSE,
        ("prefix_cache", "prefix", 1.0),
        ("full_reuse", "fused", 0.0),
        *((n, k, r) for n in ("random", "epic") for k in BOTH for r in (0.0, 0.2, 1.0)),
    }


@pytest.mark.parametrize("names", [(), ("random",), ("full_reuse",), ("random", "full_attention")])
@pytest.mark.parametrize("kinds", [("fused",), BOTH, ("fused", "isolated")])
def test_the_references_are_always_there_and_first(
    names: Sequence[str], kinds: Sequence[str]
) -> None:
    found = made(names, kinds=kinds)
    assert found[:2] == [FULL, REUSE]
    assert (found.count(FULL), found.count(REUSE)) == (1, 1)
    assert {kv for _, kv, _ in found[2:]} <= set(kinds)


def test_repeats_are_left_out() -> None:
    twice = made(("random", "random"), (0.1, 0.1), ("fused", "fused"))
    assert twice == [FULL, REUSE, ("random", "fused", 0.1)]


def test_baselines_take_no_ratio() -> None:
    assert made(BASELINES, (0.1, 0.2, 0.3)) == [
        FULL,
        REUSE,
        ("prefix_cache", "prefix", 1.0),
        ("full_reuse", "fused", 0.0),
    ]


def test_unknown_names_are_all_listed_with_the_known() -> None:
    with pytest.raises(InvalidInputError) as refused:
        made(("random", "fusionrog", "epic", "turborag"))
    said, known = str(refused.value).split("known are")
    assert "fusionrog, turborag" in said
    assert "random" not in said
    assert all(name in known for name in STRATEGY_NAMES)


def test_every_selecting_strategy_is_a_selector_and_the_defaults_are_known() -> None:
    assert set(SELECTING) == set(selector_names()) - {"none", "all"}
    assert set(DEFAULT_STRATEGIES) <= set(STRATEGY_NAMES)
    assert set(DEFAULT_STRATEGIES) >= {"full_reuse", "fusionrag", "fusionrag_paper", "cacheblend"}
    assert "prefix_cache" not in DEFAULT_STRATEGIES  # it answers as full attention does


def test_a_method_as_published_is_over_its_own_kv_alone() -> None:
    names = ("epic:published", "fusionrag", "cache_craft:published", "fusionrag_paper:published")
    assert made(names, (0.1, 0.2), ("fused",)) == [
        *(FULL, REUSE),
        *(("epic", "isolated_as_stored", 0.1), ("epic", "isolated_as_stored", 0.2)),
        *(("fusionrag", "fused", 0.1), ("fusionrag", "fused", 0.2)),
        *(("cache_craft", "fused_as_stored", 0.1), ("cache_craft", "fused_as_stored", 0.2)),
        *(("fusionrag_paper", "fused_as_stored", r) for r in (0.1, 0.2)),
    ]


def test_a_method_as_published_may_stand_beside_its_selector_over_our_kv() -> None:
    assert made(("epic:published", "epic"), (0.1,), ("fused",))[2:] == [
        ("epic", "isolated_as_stored", 0.1),
        ("epic", "fused", 0.1),
    ]
    kinds = (*BOTH, "isolated_as_stored")
    assert made(("epic", "epic:published"), (0.1,), kinds) == made(("epic",), (0.1,), kinds)


def test_which_are_as_published() -> None:
    """The others' methods, each over one kind of KV; never ours, nor chance."""
    kinds = get_args(PlacedKV)
    found = {s for s in make_strategies(SELECTING, (0.1,), kinds) if s.as_published}
    assert {s.name for s in found} == set(PUBLISHED_KV) == set(SELECTING) - {"random", "fusionrag"}
    assert len(found) == len(PUBLISHED_KV)
    as_stored = {s.name for s in found if s.kv == "fused_as_stored"}
    assert as_stored == {"fusionrag_paper", "cache_craft"}
    assert {s.kv for s in found if s.name not in as_stored} == {"isolated_as_stored"}
    assert not Strategy("full_reuse", "isolated", 0.0).as_published


@pytest.mark.parametrize(
    "name", ["random:published", "fusionrag:published", "full_reuse:published", "epic:isolated"]
)
def test_what_nobody_has_published(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name}; known .*behind the name cacheblend"):
        made((name,))


@pytest.mark.parametrize("kv", BOTH)
@pytest.mark.parametrize("name", SELECTING)
def test_at_the_ends_no_selector_decides(name: str, kv: str) -> None:
    measured = AnswerSettings(  # as asked, if short too
        kv=kv,
        break_even=False,
        max_tokens=7,
        repetition_penalty=1.0,
    )
    nothing = replace(measured, selector="none", ratio=0.0)
    everything = replace(measured, selector="all", ratio=1.0)
    assert (
        Strategy(name, kv, 0.0).settings(7) == nothing == Strategy("full_reuse", kv, 0).settings(7)
    )
    assert Strategy(name, kv, 1.0).settings(7) == everything
    between = Strategy(name, kv, 0.3).settings(7)
    assert (between.kv, between.selector, between.ratio, between.max_tokens) == (kv, name, 0.3, 7)


def test_only_ours_fits_kv_to_where_it_stands() -> None:
    """Others as published place what is stored."""
    settings = {kv: Strategy("epic", kv, 0.1).settings(3) for kv in get_args(PlacedKV)}
    assert {kv: (s.kv, s.corrected) for kv, s in settings.items()} == {
        "isolated": ("isolated", True),
        "fused": ("fused", True),
        "isolated_as_stored": ("isolated", False),
        "fused_as_stored": ("fused", False),
    }
    assert Strategy("full_reuse", "isolated", 0.0) == strategies.REUSE
    reuse = strategies.REUSE.settings(3)
    assert (reuse.kv, reuse.selector, reuse.ratio) == ("isolated", "none", 0.0)
    ours, default = Strategy("fusionrag", "fused", 0.15).settings(3), AnswerSettings()
    assert (ours.kv, ours.corrected, ours.selector, ours.ratio) == (
        *("fused", default.corrected, default.selector, default.ratio),
    )
    for name, kv in PUBLISHED_KV.items():
        assert not Strategy(name, kv, 0.1).settings(3).corrected


def test_the_placed_kv_is_named_where_it_is_used() -> None:
    stored = {s.name: s.placed for s in make_strategies(STRATEGY_NAMES, (0.1,), ("fused",))}
    assert stored.pop("full_attention") == stored.pop("prefix_cache") == "none"
    assert set(stored.values()) == {"fused"}
    assert Strategy("full_reuse", "isolated", 0.0).placed == "isolated"
    settings = Strategy("prefix_cache", "prefix", 1.0).settings(3)
    assert (settings.kv, settings.selector) == ("none", "none")
    assert Strategy("full_attention", "none", 1.0).settings(3).kv == "none"
