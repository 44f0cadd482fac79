"""LRFU scores: how often, and how recently, each record was used (Lee et al. 2001).

A use counts 1 now and half as much `half_life` uses later. Only the order of scores matters, which
time alone doesn't change, so a score is log2 of the sum of 2 ** (time of use / half_life).
"""

from __future__ import annotations

from math import log2

UNUSED = float("-inf")


class LRFUScores:
    """Scores of records by key; time is counted in uses of any of them. Not thread-safe."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._uses = 0
        self._scores: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._scores)

    def __contains__(self, key: str) -> bool:
        return key in self._scores

    def touch(self, key: str) -> None:
        """Count a use."""
        self._uses += 1
        now = self._uses / self._half_life
        before = self._scores.get(key, UNUSED)
        least, most = sorted((before, now))
        self._scores[key] = most + log2(1.0 + 2.0 ** (least - most))

    def of(self, key: str) -> float:
        """The score of a key, which is higher the more it was used; `UNUSED` for one never used."""
        return self._scores.get(key, UNUSED)

    def forget(self, key: str) -> None:
        """Remove a key's score."""
        self._scores.pop(key, None)
