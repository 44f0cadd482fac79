"""Rows from made-up measurements, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from fusionrag_integrations.bench.inspection import Inspection
from fusionrag_integrations.bench.quality import Measurement
from fusionrag_integrations.bench.statistics import normalised_interval
from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.bench.summary import (
    FULL,
    REUSE,
    QualityRow,
    leads,
    of_kind,
    summarise,
)
from fusionrag_integrations.bootstrap import interval

OURS = Strategy("fusionrag", "fused", 0.15)
PREFIX = Strategy("prefix_cache", "prefix", 1.0)


def measured(
    strategy: Strategy, f1: list[float], ttft: list[float], kind: str = "single", first: int = 0
) -> list[Measurement]:
    """One measurement a question; what no test looks at is derived from its number."""
    return [
        Measurement(
            question=first + i,
            kind=kind,
            strategy=strategy,
            answer=f"answer {i}",
            em=float(score == 1.0),
            f1=score,
            rouge1=score / 2,
            ttft_ms=ms,
            recomputed=10 * (i + 1),
            work=0.1 * (i + 1),
        )
        for i, (score, ms) in enumerate(zip(f1, ttft, strict=True))
    ]


def by_question(*groups: list[Measurement]) -> list[Measurement]:
    """In the order of a log: all strategies of a question, then the next."""
    return [m for row in zip(*groups, strict=True) for m in row]


F1 = {FULL: [1.0, 1.0, 0.4], REUSE: [0.0, 0.6, 0.0], OURS: [1.0, 0.5, 0.0]}
TTFT = {FULL: [10.0, 20.0, 90.0], REUSE: [1.0, 2.0, 3.0], OURS: [5.0, 40.0, 30.0]}
SINGLE = by_question(*(measured(s, F1[s], TTFT[s]) for s in F1))
# Full attention leads by 0.1 only: less than MIN_GAP.
HARD = by_question(
    measured(FULL, [0.6], [8.0], "hard", 3),
    measured(REUSE, [0.5], [2.0], "hard", 3),
    measured(OURS, [0.55], [4.0], "hard", 3),
)


def row_of(rows: list[QualityRow], strategy: Strategy, kind: str = "single") -> QualityRow:
    (row,) = [
        r for r in rows if (r.strategy, r.ratio, r.kind) == (strategy.name, strategy.ratio, kind)
    ]
    return row


class TestOneKind:
    rows = summarise(SINGLE)

    def test_there_is_a_row_a_strategy_in_their_order(self) -> None:
        named = [(r.strategy, r.kv, r.ratio, r.kind, r.n) for r in self.rows]
        assert named == [
            ("full_attention", "none", 1.0, "single", 3),
            ("full_reuse", "isolated", 0.0, "single", 3),
            ("fusionrag", "fused", 0.15, "single", 3),
        ]

    def test_means(self) -> None:
        ours = row_of(self.rows, OURS)
        assert ours.f1 == pytest.approx(0.5)
        assert ours.em == pytest.approx(1 / 3)
        assert ours.rouge1 == pytest.approx(0.25)
        assert ours.recomputed_tokens == pytest.approx(20.0)
        assert ours.work == pytest.approx(0.2)

    def test_medians_and_the_paired_speedup(self) -> None:
        ours = row_of(self.rows, OURS)
        assert ours.ttft_ms == 30.0
        assert ours.speedup == 2.0  # of 2, 0.5 and 3; the medians' ratio would be 2/3
        assert row_of(self.rows, FULL).speedup == 1.0
        assert row_of(self.rows, REUSE).speedup == 10.0

    def test_normalised_f1(self) -> None:
        # Means are 0.8, 0.2 and 0.5.
        assert row_of(self.rows, OURS).normalized_f1 == pytest.approx(0.5)
        assert row_of(self.rows, FULL).normalized_f1 == pytest.approx(1.0)
        assert row_of(self.rows, REUSE).normalized_f1 == pytest.approx(0.0)

    def test_intervals_are_those_of_the_scores(self) -> None:
        for strategy, scores in F1.items():
            row = row_of(self.rows, strategy)
            assert row.ci == interval(scores)
            expected = normalised_interval(scores, reuse=F1[REUSE], full=F1[FULL])
            assert row.normalized_ci == expected
        assert row_of(self.rows, FULL).normalized_ci == pytest.approx((1.0, 1.0))
        assert row_of(self.rows, OURS).ci[0] < 0.5 < row_of(self.rows, OURS).ci[1]

    def test_what_was_not_measured_is_none(self) -> None:
        ours = row_of(self.rows, OURS)
        assert (ours.judged, ours.overlap_deviation, ours.overlap_attention) == (None, None, None)
        assert (ours.deviation, ours.places) == ((), ())


class TestSeveralKinds:
    rows = summarise([*SINGLE, *HARD])

    def test_kinds_come_in_their_order_and_all_at_last(self) -> None:
        assert [r.kind for r in self.rows] == ["single"] * 3 + ["hard"] * 3 + ["all"] * 3
        assert [r.strategy for r in self.rows] == ["full_attention", "full_reuse", "fusionrag"] * 3

    def test_one_kind_has_no_row_over_all(self) -> None:
        assert {r.kind for r in summarise(SINGLE)} == {"single"}

    def test_the_kinds_rows_are_as_if_alone(self) -> None:
        assert self.rows[:3] == summarise(SINGLE)

    def test_normalised_f1_is_none_without_a_clear_lead(self) -> None:
        hard = row_of(self.rows, OURS, "hard")
        assert (hard.n, hard.normalized_f1, hard.normalized_ci) == (1, None, None)
        assert hard.f1 == pytest.approx(0.55)

    def test_all_is_over_questions_not_over_kinds(self) -> None:
        total = row_of(self.rows, OURS, "all")
        assert total.n == 4
        assert total.f1 == pytest.approx((1.0 + 0.5 + 0.0 + 0.55) / 4)
        assert total.ttft_ms == 17.5  # of 4, 5, 30, 40
        assert total.speedup == 2.0  # of 0.5, 2, 2, 3
        assert total.ci == interval([*F1[OURS], 0.55])
        # (2.05 - 1.1) / (3.0 - 1.1)
        assert total.normalized_f1 == pytest.approx(0.95 / 1.9)


def test_judged_and_inspected_questions_alone_count() -> None:
    def look(**changes: Any) -> Inspection:
        plain = {"overlap_deviation": None, "overlap_attention": None, "places": (0,) * 10}
        return Inspection(**(plain | changes))

    tenths = (6, 0, 0, 0, 0, 0, 0, 0, 0, 1), (0, 0, 2, 0, 0, 0, 0, 0, 0, 1)
    looks = [
        look(deviation=(0.0, 2.0), overlap_deviation=0.25, places=tenths[0]),
        look(deviation=(1.0, 4.0), overlap_deviation=0.75, places=tenths[1]),
        None,
    ]
    judged = [1.0, None, 0.5]
    ours = [
        Measurement(**{n: getattr(m, n) for n in _plain(m)}, inspection=seen, judged=score)
        for m, seen, score in zip(measured(OURS, [1.0] * 3, [1.0] * 3), looks, judged, strict=True)
    ]
    others = (measured(s, [1.0] * 3, [1.0] * 3) for s in (FULL, REUSE))
    row = row_of(summarise(by_question(*others, ours)), OURS)
    assert row.n == 3
    assert row.judged == 0.75
    assert row.deviation == (0.5, 3.0)
    assert (row.overlap_deviation, row.overlap_attention) == (0.5, None)
    assert row.places == (0.6, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2)


def _plain(measurement: Measurement) -> list[str]:
    return [n for n in measurement.__dataclass_fields__ if n not in ("inspection", "judged")]


def test_ratios_and_kv_are_rows_of_their_own() -> None:
    strategies = [
        *(FULL, REUSE),
        *(Strategy("random", kv, r) for kv in ("isolated", "fused") for r in (0.1, 0.2)),
    ]
    groups = [measured(s, [0.1 * i], [1.0]) for i, s in enumerate(strategies)]
    rows = summarise(by_question(*groups))
    assert [(r.kv, r.ratio) for r in rows[2:]] == [
        *(("isolated", 0.1), ("isolated", 0.2), ("fused", 0.1), ("fused", 0.2))
    ]
    assert [r.f1 for r in rows] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


class TestLeads:
    def test_the_difference_is_paired_by_question(self) -> None:
        ours, other, epic = (Strategy(n, "fused", 0.15) for n in ("fusionrag", "random", "epic"))
        scores = {ours: F1[OURS], other: [0.0, 0.6, 0.0], epic: [1.0, 0.5, 0.0]}
        groups = [measured(s, scores[s], [1.0] * 3) for s in scores]
        found, none = leads(by_question(*groups), "fusionrag")
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
            *(FULL, REUSE, PREFIX),
            *(
                Strategy(name, kv, ratio)
                for name in ("random", "epic", "fusionrag")
                for kv in ("isolated", "fused")
                for ratio in (0.0, 0.1, 0.2, 1.0)
            ),
        ]
        groups = [measured(s, [0.5, 1.0], [1.0, 1.0]) for s in strategies]
        found = leads(by_question(*groups), "fusionrag")
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
            *by_question(
                measured(ours, [1.0, 0.5], [1.0] * 2), measured(other, [0.0] * 2, [1.0] * 2)
            ),
            *by_question(
                measured(ours, [0.0], [1.0], "hard", 2), measured(other, [1.0], [1.0], "hard", 2)
            ),
        ]
        found = {lead.kind: lead.mean for lead in leads(log, "fusionrag")}
        assert list(found) == ["single", "hard", "all"]
        assert list(found.values()) == pytest.approx([0.75, -1.0, 1 / 6])

    def test_without_ours_there_are_none(self) -> None:
        assert leads(SINGLE, "infoflow") == []


def test_of_kind() -> None:
    both = [*SINGLE, *HARD]
    assert of_kind(both, "hard") == HARD
    assert of_kind(both, "single") == SINGLE
    assert of_kind(both, "all") == both
    assert of_kind(both, "none such") == []
