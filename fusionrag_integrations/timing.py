"""Where the time to first token goes."""

from __future__ import annotations

from dataclasses import fields
from time import perf_counter

import torch

from fusionrag_integrations.types import TTFTBreakdown


def settle(device: torch.device) -> None:
    """Wait for the device's queued work, so that a clock read now counts it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Gives the time since the last lap to a named part of the TTFT."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = perf_counter()
        self._ms = {f.name: 0.0 for f in fields(TTFTBreakdown)}

    def lap(self, part: str, *, wait: bool = True) -> None:
        """End a lap and count it to `part`.

        wait: for the device. What it isn't waited for counts to the lap that waits.
        """
        if wait:
            settle(self._device)
        now = perf_counter()
        self._ms[part] += (now - self._last) * 1e3
        self._last = now

    def move(self, source: str, target: str, ms: float) -> None:
        """Count `ms` of what `source` got to `target` instead."""
        self._ms[source] -= ms
        self._ms[target] += ms

    def breakdown(self) -> TTFTBreakdown:
        """The laps so far."""
        return TTFTBreakdown(**self._ms)
