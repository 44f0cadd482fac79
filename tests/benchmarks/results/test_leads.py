"""How far ours is ahead, on made-up measurements worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from benchmarks.results.differences import Difference, paired_difference
from benchmarks.results.leads import leads, published_leads
from fusionrag_integrations.bench.measurement import Measurement
from fusionrag_integrations.bench.strategies import FULL, REUSE, PlacedKV, Strategy
from fusionrag_integrations.check.bootstrap import ratio_interval
from tests.bench.test_summary import F1, OURS, SAME, SINGLE, by_question, measured

PREFIX = Strategy("prefix_cache", "prefix", 1.0)


def log_of(*groups: list[Measurement]) -> list[Measurement]:
    """Measurements of some strategies, beside what all are compared with."""
    first, *_ = groups
    ends = [
        [replace(m, strategy=s, closeness=replace(SAME, kl=1.0)) for m in first]
        for s in (FULL, REUSE)
    ]
    return by_question(*ends, *groups)


class TestLeads:
    def test_the_difference_is_paired_by_question(self) -> None:
        ours, other, epic = (Strategy(n, "fused", 0.15) for n in ("fusionrag", "random", "epic"))
        scores = {ours: F1[OURS], other: [0.0, 0.6, 0.0], epic: [1.0, 0.5, 0.0]}
        groups = [measured(s, scores[s], [1.0] * 3) for s in scores]
        found, none = leads(log_of(*groups))
        assert (found.kind, found.kv, found.ratio, found.other) == (
            "single",
            "fused",
            0.15,
            "random",
        )
        assert found.mean == pytest.approx(0.3)  # of 1.0, -0.1 and 0.0
        assert found.low == pytest.approx(-0.1)  # the worst of three, thrice
        assert found.high == pytest.approx(1.0)
        assert (none.other, none.mean, none.low, none.high) == ("epic", 0.0, 0.0, 0.0)

    def test_only_choices_on_the_same_kv_at_the_same_ratio_are_compared(self) -> None:
        strategies = [
            PREFIX,
            *(
                Strategy(name, kv, ratio)
                for name in ("random", "epic", "fusionrag")
                for kv in ("isolated", "fused")
                for ratio in (0.0, 0.1, 0.2, 1.0)
            ),
        ]
        groups = [measured(s, [0.5, 1.0], [1.0, 1.0]) for s in strategies]
        found = leads(log_of(*groups))
        assert {(lead.kv, lead.ratio, lead.other) for lead in found} == {
            (kv, ratio, other)
            for kv in ("isolated", "fused")
            for ratio in (0.1, 0.2)
            for other in ("random", "epic")
        }
        assert len(found) == 8

    def test_each_kind_and_all_of_them(self) -> None:
        ours, other = (Strategy(name, "isolated", 0.1) for name in ("fusionrag", "random"))
        log = [
            *log_of(measured(ours, [1.0, 0.5], [1.0] * 2), measured(other, [0.0] * 2, [1.0] * 2)),
            *log_of(
                measured(ours, [0.0], [1.0], "hard", 2), measured(other, [1.0], [1.0], "hard", 2)
            ),
        ]
        found = {lead.kind: lead.mean for lead in leads(log)}
        assert list(found) == ["single", "hard", "all"]
        assert list(found.values()) == pytest.approx([0.75, -1.0, 1 / 6])

    def test_without_ours_there_are_none(self) -> None:
        assert leads([m for m in SINGLE if m.strategy != OURS]) == []


def diverging(strategy: Strategy, kl: list[float], right: str) -> list[Measurement]:
    """right: of each question, y where the answer is."""
    return [
        replace(m, closeness=replace(SAME, kl=value), right=letter == "y")
        for m, value, letter in zip(
            measured(strategy, [0.5] * len(kl), [1.0] * len(kl)), kl, right, strict=True
        )
    ]


REUSED = [4.0, 2.0, 10.0, 4.0]
MINE = [1.0, 0.5, 2.0, 0.5]
THEIRS = [2.0, 0.5, 7.0, 4.5]


class TestWhatIsRecovered:
    def test_the_gap_is_of_sums_over_full_reuses(self) -> None:
        epic = Strategy("epic", "fused", 0.15)
        log = by_question(
            diverging(FULL, [0.0] * 4, "yyyy"),
            diverging(REUSE, REUSED, "yyyy"),
            diverging(OURS, MINE, "yyyy"),
            diverging(epic, THEIRS, "yyyy"),
        )
        (found,) = leads(log)
        assert found.recovered is not None
        # R is 1 - 4 / 20 = 0.8 for ours and 1 - 14 / 20 = 0.3 for theirs.
        assert found.recovered.mean == pytest.approx(0.8 - 0.3)
        bounds = ratio_interval([1.0, 0.0, 5.0, 4.0], REUSED)
        assert (found.recovered.low, found.recovered.high) == bounds

    def test_none_where_full_reuse_loses_nothing(self) -> None:
        epic = Strategy("epic", "fused", 0.15)
        groups = [diverging(s, [0.0] * 2, "yy") for s in (FULL, REUSE, OURS, epic)]
        (found,) = leads(by_question(*groups))
        assert found.recovered is None
        assert found.mean == 0.0


class TestAsPublished:
    epic = Strategy("epic", "isolated_as_stored", 0.15)

    def log(self, *others: list[Measurement]) -> list[Measurement]:
        return by_question(
            diverging(FULL, [0.0] * 4, "yyny"),
            diverging(REUSE, REUSED, "nnnn"),
            diverging(OURS, MINE, "yyyy"),
            *others,
        )

    def test_the_gap_in_what_is_recovered_and_kept(self) -> None:
        (found,) = published_leads(self.log(diverging(self.epic, THEIRS, "nyny")))
        assert (found.kind, found.kv, found.ratio, found.other) == (
            *("single", "isolated_as_stored", 0.15, "epic"),
        )
        assert found.recovered is not None
        assert found.recovered.mean == pytest.approx(0.5)
        # Of the three that full attention answers rightly, ours keeps all, theirs all but one.
        assert found.kept == paired_difference([1.0, 1.0, 1.0], [0.0, 1.0, 1.0])
        assert found.kept is not None
        assert found.kept.mean == pytest.approx(1 / 3)

    def test_none_is_kept_where_nothing_is_right(self) -> None:
        log = [replace(m, right=False) for m in self.log(diverging(self.epic, THEIRS, "nnnn"))]
        (found,) = published_leads(log)
        assert found.kept is None

    def test_ours_is_over_fused_kv_and_theirs_over_their_own(self) -> None:
        names = (
            *("random", "cacheblend", "cache_craft", "epic"),
            *("fusionrag_paper", "prophetkv", "infoflow", "fusionrag"),
        )
        strategies = [
            Strategy(name, kv, ratio)
            for name in names
            for kv in get_args(PlacedKV)
            for ratio in (0.0, 0.15, 0.3, 1.0)
        ]
        groups = [diverging(s, MINE, "yyyy") for s in strategies]
        found = published_leads(log_of(*groups))
        assert {(lead.other, lead.kv) for lead in found} == {
            *(
                (name, "isolated_as_stored")
                for name in ("cacheblend", "epic", "prophetkv", "infoflow")
            ),
            *((name, "fused_as_stored") for name in ("cache_craft", "fusionrag_paper")),
        }
        assert {lead.ratio for lead in found} == {0.15, 0.3}
        assert len(found) == 6 * 2
        assert all(lead.recovered == Difference(0.0, 0.0, 0.0) for lead in found)

    def test_ours_over_isolated_kv_is_compared_with_none(self) -> None:
        log = log_of(
            diverging(Strategy("fusionrag", "isolated", 0.15), MINE, "yyyy"),
            diverging(Strategy("epic", "isolated", 0.15), THEIRS, "yyyy"),
        )
        assert published_leads(log) == []
        assert len(leads(log)) == 1
