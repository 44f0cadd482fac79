"""Rows from made-up measurements, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fusionrag_integrations.bench.closeness import Closeness
from fusionrag_integrations.bench.inspection import Inspection
from fusionrag_integrations.bench.measurement import Measurement
from fusionrag_integrations.bench.statistics import normalised_interval
from fusionrag_integrations.bench.strategies import FULL, REUSE, Strategy
from fusionrag_integrations.bench.summary import QualityRow, of_kind, summarise
from fusionrag_integrations.check.bootstrap import interval, ratio_interval

OURS = Strategy("fusionrag", "fused", 0.15)
SAME = Closeness(equal=True, tokens=3, agreed=3, counted=2, kl=0.0, answer_tokens=1, kl_answer=0.0)


def measured(
    strategy: Strategy,
    f1: list[float],
    ttft: Sequence[float | None],
    kind: str = "single",
    first: int = 0,
) -> list[Measurement]:
    """One measurement a question; what no test looks at is derived from its number."""
    return [
        Measurement(
            question=first + i,
            kind=kind,
            strategy=strategy,
            answer=f"answer {i}",
            right=score == 1.0,
            em=float(score == 1.0),
            f1=score,
            rouge1=score / 2,
            closeness=SAME,
            recomputed=10 * (i + 1),
            work=0.1 * (i + 1),
            ttft_ms=ms,
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


class TestTimes:
    def test_only_timed_questions_count(self) -> None:
        ttft = {FULL: [None, 20.0, 90.0], REUSE: [None] * 3, OURS: [None, 40.0, 30.0]}
        rows = summarise(by_question(*(measured(s, F1[s], ttft[s]) for s in F1)))
        ours = row_of(rows, OURS)
        assert (ours.timed, ours.ttft_ms, ours.speedup) == (2, 35.0, 1.75)  # of 0.5 and 3
        reuse = row_of(rows, REUSE)
        assert (reuse.timed, reuse.ttft_ms, reuse.speedup) == (0, None, None)


# Four questions: what full attention answers, and how close the others come.
RIGHT = {FULL: [1, 1, 0, 1], REUSE: [1, 0, 1, 0], OURS: [1, 1, 0, 0]}
CLOSE = {
    FULL: [(True, 5, 5, 4, 0.0, 2, 0.0), (True, 3, 3, 2, 0.0, 1, 0.0)] * 2,
    REUSE: [
        (False, 5, 2, 4, 8.0, 2, 3.0),
        (False, 3, 1, 2, 1.0, 1, 1.0),
        (True, 5, 5, 4, 0.4, 0, 0.0),
        (False, 3, 0, 2, 2.6, 1, 1.0),
    ],
    OURS: [
        (True, 5, 5, 4, 0.4, 2, 0.3),
        (True, 3, 3, 2, 0.2, 1, 0.1),
        (False, 5, 4, 4, 0.8, 0, 0.0),
        (False, 3, 1, 2, 1.6, 1, 1.6),
    ],
}


def close(strategy: Strategy, kind: str = "single", first: int = 0) -> list[Measurement]:
    numbers = range(len(RIGHT[strategy]))
    plain = measured(strategy, [0.5] * len(numbers), [1.0] * len(numbers), kind, first)
    return [
        replace(m, right=bool(RIGHT[strategy][i]), closeness=Closeness(*CLOSE[strategy][i]))
        for i, m in zip(numbers, plain, strict=True)
    ]


class TestCloseness:
    rows = summarise(by_question(*(close(s) for s in RIGHT)))

    def test_kept_is_of_what_full_attention_answers_rightly(self) -> None:
        ours, reuse = row_of(self.rows, OURS), row_of(self.rows, REUSE)
        assert (ours.kept, ours.kept_of) == (pytest.approx(2 / 3), 3)
        assert reuse.kept == pytest.approx(1 / 3)  # what it alone answers rightly isn't kept
        assert ours.kept_ci == interval([1.0, 1.0, 0.0])

    def test_equal_answers(self) -> None:
        ours = row_of(self.rows, OURS)
        assert ours.equal == 0.5
        assert ours.equal_ci == interval([1.0, 1.0, 0.0, 0.0])

    def test_agreement_is_by_token(self) -> None:
        ours = row_of(self.rows, OURS)
        assert ours.agreement == pytest.approx(13 / 16)  # the mean by question is 0.783
        assert ours.agreement_ci == ratio_interval([5, 3, 4, 1], [5, 3, 5, 3])

    def test_the_divergence_is_by_counted_token(self) -> None:
        ours = row_of(self.rows, OURS)
        assert ours.kl == pytest.approx(3.0 / 12)  # the mean of 0.1, 0.1, 0.2 and 0.8 is 0.3
        assert ours.kl_ci == ratio_interval([0.4, 0.2, 0.8, 1.6], [4, 2, 4, 2])
        assert ours.kl_median == pytest.approx(0.15)
        assert ours.kl_worst_tenth == pytest.approx(0.8)  # one question at least
        assert ours.kl_answer == pytest.approx(2.0 / 4)

    def test_recovered_is_of_full_reuses_divergence(self) -> None:
        ours = row_of(self.rows, OURS)
        assert ours.recovered == pytest.approx(1 - 3.0 / 12.0)
        taken = [8.0 - 0.4, 1.0 - 0.2, 0.4 - 0.8, 2.6 - 1.6]
        assert ours.recovered_ci == pytest.approx(ratio_interval(taken, [8.0, 1.0, 0.4, 2.6]))

    def test_the_ends(self) -> None:
        full, reuse = row_of(self.rows, FULL), row_of(self.rows, REUSE)
        assert (full.kept, full.equal, full.agreement, full.recovered) == (1.0, 1.0, 1.0, 1.0)
        assert (full.kl, full.kl_median, full.kl_worst_tenth, full.kl_answer) == (0.0,) * 4
        assert full.kept_ci == full.equal_ci == full.recovered_ci == (1.0, 1.0)
        assert (reuse.recovered, reuse.recovered_ci) == (0.0, (0.0, 0.0))

    def test_the_worst_tenth_is_of_questions(self) -> None:
        many = [
            replace(m, question=i, closeness=replace(SAME, kl=float(i), counted=2))
            for i, m in enumerate(measured(OURS, [0.0] * 25, [1.0] * 25))
        ]
        others = [measured(s, [0.0] * 25, [1.0] * 25) for s in (FULL, REUSE)]
        row = row_of(summarise(by_question(*others, many)), OURS)
        assert row.kl_worst_tenth == pytest.approx((22 + 23 + 24) / 3 / 2)  # three of 25
        assert row.kl_median == 6.0

    def test_what_there_is_nothing_to_divide_by(self) -> None:
        nothing = replace(SAME, answer_tokens=0)
        groups = [
            [replace(m, closeness=nothing, right=s == OURS) for m in measured(s, [0.0], [1.0])]
            for s in (FULL, REUSE, OURS)
        ]
        ours = row_of(summarise(by_question(*groups)), OURS)
        assert (ours.kept, ours.kept_ci, ours.kept_of) == (None, None, 0)
        assert (ours.recovered, ours.recovered_ci, ours.kl_answer) == (None, None, None)

    def test_each_kind_is_compared_with_its_own_reuse(self) -> None:
        """And all of them with all of it."""
        log = [m for s in RIGHT for m in close(s)]
        other = [
            replace(m, kind="hard", question=4, closeness=replace(SAME, kl=kl))
            for s, kl in ((FULL, 0.0), (REUSE, 4.0), (OURS, 1.0))
            for m in measured(s, [0.5], [1.0])
        ]
        rows = summarise([*log, *other])
        assert row_of(rows, OURS).recovered == pytest.approx(0.75)
        assert row_of(rows, OURS, "hard").recovered == pytest.approx(0.75)
        assert row_of(rows, OURS, "all").recovered == pytest.approx(1 - 4.0 / 16.0)
        assert row_of(rows, OURS, "all").kept_of == 3


def test_of_kind() -> None:
    both = [*SINGLE, *HARD]
    assert of_kind(both, "hard") == HARD
    assert of_kind(both, "single") == SINGLE
    assert of_kind(both, "all") == both
    assert of_kind(both, "none such") == []
