"""How sure a mean normalised F1 is: a bootstrap interval over questions (see `bootstrap`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusionrag_integrations.bench.metrics import normalised
from fusionrag_integrations.check.bootstrap import percentiles, resampled_means


def normalised_interval(
    scores: Sequence[float],
    reuse: Sequence[float],
    full: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Bounds of the normalised F1 of `scores`: all three means are drawn anew, from one draw.

    None where `normalised` is None, and where full attention doesn't lead in some resample: a
    ratio whose divisor may be 0 has no bounds.
    """
    f1, low, high = resampled_means([scores, reuse, full], seed, resamples)
    gap = high - low
    if normalised(*(float(np.mean(s)) for s in (scores, reuse, full))) is None or gap.min() <= 0:
        return None
    return percentiles((f1 - low) / gap, level)
