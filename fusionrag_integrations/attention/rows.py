"""Where the rows of one pass stand, worked out once for all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

BLOCK = 64  # rows that share one product with the keys; fewer see less that they must mask


@dataclass(frozen=True, slots=True)
class Block:
    """Some of the rows, [start, stop), and the first and last position among them."""

    start: int
    stop: int
    first: int
    last: int


class Rows:
    """Positions of the rows of a pass: on the host, and on the device so that no layer waits.

    positions: any, in any order; attention is quickest over ascending ones. `on_device`: int64 [R].
    """

    def __init__(self, positions: Sequence[int], on_device: torch.Tensor) -> None:
        self.positions = positions
        self.on_device = on_device

    @classmethod
    def at(cls, positions: Sequence[int], device: torch.device) -> Rows:
        """Rows at `positions`, which are copied to the device."""
        return cls(positions, torch.tensor(positions, device=device))

    def __len__(self) -> int:
        return len(self.positions)

    def part(self, rows: slice) -> Rows:
        """Some of the rows. Nothing is copied."""
        return Rows(self.positions[rows], self.on_device[rows])

    @cached_property
    def last(self) -> int:
        """No row stands behind this position."""
        return max(self.positions)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The rows, `BLOCK` at a time."""
        starts = range(0, len(self), BLOCK)
        parts = [self.positions[start : start + BLOCK] for start in starts]
        return tuple(
            Block(start, start + len(part), min(part), max(part))
            for start, part in zip(starts, parts, strict=True)
        )


class MovingRow(Rows):
    """One row that the device itself moves; the host knows only that it stays below `limit`."""

    def __init__(self, on_device: torch.Tensor, limit: int) -> None:
        super().__init__((limit - 1,), on_device)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """One, wherever the row is."""
        return (Block(0, 1, 0, self.last),)
