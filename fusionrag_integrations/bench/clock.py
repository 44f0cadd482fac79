"""Times of repeated work on a device, and how far they spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch

from fusionrag_integrations.execution.devices import settle


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


def kernel_ms(work: Callable[[], Any], repeat: int, device: torch.device) -> float:
    """Median milliseconds of what a device does for a call.

    On CUDA by the device's own clock, with its cache emptied before each call and without the time
    that Python takes to launch; elsewhere as `times_ms`.
    """
    if device.type != "cuda":
        return median(times_ms(work, repeat, device))
    from triton.testing import do_bench

    with torch.inference_mode():
        return float(do_bench(work, return_mode="median"))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The bounds of the middle half of some values; of one value, the value."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return low, high
