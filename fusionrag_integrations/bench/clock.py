"""Times of repeated work on a device, and how far they spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import quantiles
from time import perf_counter
from typing import Any

import torch

from fusionrag_integrations.timing import settle


def times_ms(work: Callable[[], Any], repeat: int, device: torch.device) -> list[float]:
    """Milliseconds of each call, after one that warms up; the device's queue is waited for."""
    with torch.inference_mode():
        work()
        settle(device)
        times = []
        for _ in range(repeat):
            started = perf_counter()
            work()
            settle(device)
            times.append(1e3 * (perf_counter() - started))
    return times


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Between which the middle half of some values lies; of one value, the value."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return low, high
