"""How sure a measured mean is: percentile bootstrap intervals over questions (Efron, 1979).

Questions are drawn with replacement, as many as there are. Scores of several strategies on the same
questions are drawn together, so that a question that is hard for all of them cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fusionrag_integrations.errors import InvalidInputError

Floats = npt.NDArray[np.float64]


def interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Bounds that hold the true mean in about `level` of all experiments.

    Raises InvalidInputError, as all here, without values and for values that aren't finite.
    """
    (means,) = resampled_means([values], seed, resamples)
    return percentiles(means, level)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Bounds of sum(numerators) / sum(denominators), drawn together.

    None if the denominators' sum isn't positive in some resample: such a ratio has no bounds.
    """
    above, below = resampled_means([numerators, denominators], seed, resamples)
    return percentiles(above / below, level) if below.min() > 0 else None


def resampled_means(rows: Sequence[Sequence[float]], seed: int, resamples: int) -> Floats:
    """Scores of K strategies on n questions -> [K, resamples], column by column from one draw."""
    lengths = {len(row) for row in rows}
    if len(lengths) > 1 or 0 in lengths:
        raise InvalidInputError(
            f"Got scores on {', '.join(str(len(row)) for row in rows)} questions; "
            "give at least one, and the same questions for each strategy."
        )
    scores = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise InvalidInputError("Some scores are infinite or not numbers; give finite ones.")
    if resamples < 1:
        raise InvalidInputError(f"resamples is {resamples}; give at least 1.")
    n = scores.shape[1]
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    return np.stack([row[drawn].mean(axis=1) for row in scores])


def percentiles(values: Floats, level: float) -> tuple[float, float]:
    """The bounds of the middle `level` of `values`."""
    if not 0.0 < level < 1.0:
        raise InvalidInputError(f"level is {level}; it must lie between 0 and 1.")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
