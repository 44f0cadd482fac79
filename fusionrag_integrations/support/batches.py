"""A sequence in batches of a fixed size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`size` values at a time, in their order; the last batch may be shorter."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
