"""How two strategies differ on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusionrag_integrations.check.bootstrap import percentiles, resampled_means


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of a - b over questions, with its interval: without 0 in it, they differ."""

    mean: float
    low: float
    high: float


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Difference:
    """Two strategies' scores on the same questions, in the same order."""
    mean_a, mean_b = resampled_means([a, b], seed, resamples)
    low, high = percentiles(mean_a - mean_b, level)
    return Difference(float(np.mean(a) - np.mean(b)), low, high)
