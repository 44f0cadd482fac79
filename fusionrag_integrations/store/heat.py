"""How hot each record is: how often it was used, and how lately.

A use counts 1 now and half as much `half_life` uses later. What matters is the order alone, which
time doesn't change: log2 of the sum of 2 ** (time of use / half_life) (LRFU, Lee et al. 2001).
"""

from __future__ import annotations

from math import log2

COLD = float("-inf")


class Heat:
    """Heat of records by key; time is counted in uses of any of them. Not thread-safe."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._uses = 0
        self._heat: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._heat)

    def __contains__(self, key: str) -> bool:
        return key in self._heat

    def touch(self, key: str) -> None:
        """Count a use."""
        self._uses += 1
        now = self._uses / self._half_life
        before = self._heat.get(key, COLD)
        least, most = sorted((before, now))
        self._heat[key] = most + log2(1.0 + 2.0 ** (least - most))

    def of(self, key: str) -> float:
        """Higher is hotter; `COLD` for what was never used."""
        return self._heat.get(key, COLD)

    def forget(self, key: str) -> None:
        """Let go of a key."""
        self._heat.pop(key, None)
