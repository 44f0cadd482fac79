"""Fingerprints of stretches of text: one number each, computed for all of a long text at once.

The fingerprint of characters c[0], c[1], ... is the sum of c[i] * _BASE**i modulo 2**64. Different
stretches may share one, so texts whose fingerprints are equal must still be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Integers = NDArray[np.int64]

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64


class Prints:
    """Fingerprints of any stretches of a text, after one pass over it.

    A difference of two running sums is a stretch's own sum, which powers of the inverse base shift
    so that its first character has i = 0.
    """

    def __init__(self, text: str) -> None:
        self.length = len(text)
        characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        self._sums = np.zeros(len(text) + 1, np.uint64)
        np.cumsum(characters * _powers(_BASE, len(text)), out=self._sums[1:])
        self._shifts = _powers(pow(_BASE, -1, 2**64), len(text) + 1)

    def of(self, starts: Integers | int, lengths: Integers | int) -> Hashes:
        """Fingerprints of [start, start + length); at least one of the two is an array."""
        sums = self._sums[starts + lengths] - self._sums[starts]
        hashes: Hashes = sums * self._shifts[starts]
        return hashes

    def everywhere(self, length: int) -> Hashes:
        """Fingerprints of all stretches of this length, by their starts."""
        sums = self._sums[length:] - self._sums[:-length]
        return sums * self._shifts[: len(sums)]


def fingerprints(texts: Sequence[str], beginnings: Sequence[int]) -> Hashes:
    """[texts, beginnings + 1]: of each text's beginnings of these lengths, then of all of it.

    A text that is shorter than a beginning is used whole instead.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    starts = np.cumsum(lengths) - lengths
    prints = Prints("".join(texts))
    stretches = [*(np.minimum(lengths, beginning) for beginning in beginnings), lengths]
    return np.stack([prints.of(starts, stretch) for stretch in stretches], axis=1)


def positions(table: Hashes, hashes: Hashes) -> Integers:
    """The index of each fingerprint in an ascending table; -1 for those that aren't in it."""
    if not len(table):
        return np.full(len(hashes), -1)
    found = np.minimum(np.searchsorted(table, hashes), len(table) - 1)
    return np.where(table[found] == hashes, found, -1)


def _powers(base: int, count: int) -> Hashes:
    """base**0, base**1, ..., base**(count - 1) modulo 2**64."""
    return _power_table(base, count.bit_length())[:count]


@lru_cache(maxsize=4)
def _power_table(base: int, bits: int) -> Hashes:
    factors = np.full(1 << bits, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
