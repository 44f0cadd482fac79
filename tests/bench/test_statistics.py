"""The bootstrap interval of a normalised mean, against a loop and cases without spread."""

from __future__ import annotations

from statistics import mean

import pytest

from fusionrag_integrations.bench.statistics import normalised_interval
from tests.test_bootstrap import draws, percentile, scores


def test_normalised_is_that_of_a_loop() -> None:
    f1, reuse, full = scores(1, shift=0.5), scores(2), scores(3, shift=1.0)
    ratios = []
    for drawn in draws(len(f1)):
        s, r, f = (mean(row[i] for i in drawn) for row in (f1, reuse, full))
        ratios.append((s - r) / (f - r))
    assert normalised_interval(f1, reuse, full) == pytest.approx(
        (percentile(ratios, 0.025), percentile(ratios, 0.975))
    )


def test_full_attention_itself_keeps_all_and_reuse_nothing() -> None:
    reuse, full = scores(2), scores(3, shift=1.0)
    assert normalised_interval(full, reuse, full) == pytest.approx((1.0, 1.0))
    assert normalised_interval(reuse, reuse, full) == pytest.approx((0.0, 0.0))


def test_no_normalised_interval_without_a_gap() -> None:
    assert normalised_interval([0.1] * 4, [0.0] * 4, [0.1] * 4) is None
    # The gap is 0.25, but one question makes it: a resample without that one has none.
    assert normalised_interval([0.0] * 4, [0.0] * 4, [1.0, 0.0, 0.0, 0.0]) is None


def test_equal_values_have_no_spread() -> None:
    assert normalised_interval([0.5] * 4, [0.25] * 4, [0.75] * 4) == (0.5, 0.5)
