"""Measuring the parts of the time to first token."""

from __future__ import annotations

from dataclasses import fields
from time import perf_counter

import torch

from fusionrag_integrations.execution.devices import settle
from fusionrag_integrations.serving.usage import TTFTBreakdown


class Stopwatch:
    """Measures the parts of the TTFT, one lap after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = perf_counter()
        self._ms = {f.name: 0.0 for f in fields(TTFTBreakdown)}

    def start(self) -> None:
        """Begin the first lap now."""
        self._last = perf_counter()

    def lap(self, part: str, *, wait: bool = True) -> None:
        """End a lap and count it to `part`.

        wait: for the device. Work that isn't waited for counts to the next lap that waits.
        """
        if wait:
            settle(self._device)
        now = perf_counter()
        self._ms[part] += (now - self._last) * 1e3
        self._last = now

    def move(self, source: str, target: str, ms: float) -> None:
        """Count `ms` of `source` to `target` instead."""
        self._ms[source] -= ms
        self._ms[target] += ms

    def breakdown(self) -> TTFTBreakdown:
        """The laps so far."""
        return TTFTBreakdown(**self._ms)
