"""Bootstrap intervals against a loop, a known distribution, and cases without spread."""

from __future__ import annotations

import random
from statistics import mean

import numpy as np
import pytest

from benchmarks.results.differences import Difference, paired_difference
from fusionrag_integrations.check.bootstrap import interval, ratio_interval
from fusionrag_integrations.errors import InvalidInputError


def scores(seed: int, n: int = 40, shift: float = 0.0) -> list[float]:
    rng = random.Random(seed)
    return [rng.random() + shift for _ in range(n)]


def draws(n: int, seed: int = 0, resamples: int = 2000) -> list[list[int]]:
    """The questions of each resample, as the module draws them."""
    return np.random.default_rng(seed).integers(n, size=(resamples, n)).tolist()


def percentile(values: list[float], share: float) -> float:
    """Interpolated between order statistics, which stand at 0, 1/(n - 1), ..., 1."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def test_interval_is_that_of_a_loop() -> None:
    values = scores(1)
    means = [mean(values[i] for i in drawn) for drawn in draws(len(values))]
    assert interval(values) == pytest.approx((percentile(means, 0.025), percentile(means, 0.975)))
    assert interval(values, level=0.5) == pytest.approx(
        (percentile(means, 0.25), percentile(means, 0.75))
    )


def test_difference_is_that_of_a_loop() -> None:
    a, b = scores(1), scores(2)
    means = [mean(a[i] - b[i] for i in drawn) for drawn in draws(len(a), seed=7, resamples=300)]
    found = paired_difference(a, b, seed=7, resamples=300)
    assert found.mean == pytest.approx(mean(a) - mean(b))
    assert (found.low, found.high) == pytest.approx(
        (percentile(means, 0.025), percentile(means, 0.975))
    )


def test_a_ratio_of_sums_is_that_of_a_loop() -> None:
    above, below = scores(1), scores(2, shift=0.1)
    ratios = [
        sum(above[i] for i in drawn) / sum(below[i] for i in drawn) for drawn in draws(len(above))
    ]
    expected = (percentile(ratios, 0.025), percentile(ratios, 0.975))
    assert ratio_interval(above, below) == pytest.approx(expected)


def test_both_sums_of_a_ratio_are_drawn_together() -> None:
    """A question that weighs much weighs in both: drawn apart, the ratio would vary by far."""
    below = [1.0] * 30 + [100.0] * 3
    assert ratio_interval([0.25 * b for b in below], below) == pytest.approx((0.25, 0.25))


def test_a_ratio_of_sums_is_not_a_mean_of_ratios() -> None:
    low, high = ratio_interval([0.0, 90.0] * 40, [10.0, 90.0] * 40) or (0.0, 0.0)
    assert low < 0.9 < high  # 90 / 100; the mean of 0 and 1 is 0.5
    assert low > 0.5


def test_no_bounds_for_a_ratio_over_nothing() -> None:
    assert ratio_interval([1.0, 1.0], [0.0, 0.0]) is None
    assert ratio_interval([1.0] * 4, [1.0, 0.0, 0.0, 0.0]) is None  # nothing in some resample
    assert ratio_interval([0.0] * 4, [1.0] * 4) == (0.0, 0.0)


def test_a_95_percent_interval_holds_the_true_mean_in_95_percent() -> None:
    """Coverage of 400 experiments on 100 draws of an exponential distribution, whose mean is 1."""
    rng = np.random.default_rng(5)
    held = sum(
        low <= 1.0 <= high
        for low, high in (interval(rng.exponential(size=100), resamples=500) for _ in range(400))
    )
    # The standard error of 400 trials at 0.95 is 0.011; skew costs the bootstrap about 0.02.
    assert 0.90 <= held / 400 <= 0.98


def test_the_width_is_that_of_the_normal_approximation() -> None:
    values = scores(3, n=400)
    low, high = interval(values, resamples=20_000)
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / 20, rel=0.03)


def test_pairing_cancels_what_questions_share() -> None:
    hard = scores(4)
    better = [score + 0.05 for score in hard]
    found = paired_difference(better, hard)
    assert (found.mean, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))
    low, high = interval(hard)
    assert high - low > 0.05  # unpaired, the lead would drown


def test_equal_values_have_no_spread() -> None:
    assert interval([0.5] * 9) == (0.5, 0.5)
    assert interval([0.25]) == (0.25, 0.25)
    assert paired_difference([1.0, 0.0], [1.0, 0.0]) == Difference(0.0, 0.0, 0.0)


def test_seeds() -> None:
    values = scores(1)
    assert interval(values) == interval(values, seed=0)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_bad_input() -> None:
    with pytest.raises(InvalidInputError, match="scores on 0 questions"):
        interval([])
    with pytest.raises(InvalidInputError, match="scores on 2, 1 questions"):
        paired_difference([1.0, 0.0], [1.0])
    with pytest.raises(InvalidInputError, match="not numbers"):
        interval([float("nan")])
    with pytest.raises(InvalidInputError, match="level is 95"):
        interval([1.0], level=95)
    with pytest.raises(InvalidInputError, match="resamples is 0"):
        interval([1.0], resamples=0)
