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

    def seen_from(self, window: int | None) -> int:
        """The first slot that any of them sees."""
        return 0 if window is None else max(0, self.first - window + 1)


class Rows:
    """Positions of one sequence's rows in a pass: on the host, and on the device once it is asked.

    positions: any, in any order; attention is quickest over ascending ones.
    """

    def __init__(
        self,
        positions: Sequence[int],
        device: torch.device,
        on_device: torch.Tensor | None = None,
    ) -> None:
        """on_device: the positions, where they are there already."""
        self.positions = positions
        self.device = device
        self._on_device = on_device

    @classmethod
    def at(cls, positions: Sequence[int], device: torch.device) -> Rows:
        """Rows at `positions`."""
        return cls(positions, device)

    def __len__(self) -> int:
        return len(self.positions)

    def part(self, rows: slice) -> Rows:
        """Some of the rows. Nothing is copied."""
        there = self._on_device
        return Rows(self.positions[rows], self.device, None if there is None else there[rows])

    @property
    def on_device(self) -> torch.Tensor:
        """The positions, int64 [R], so that no layer waits for the host."""
        if self._on_device is None:
            table = torch.tensor(self.positions, dtype=torch.int64)
            self._on_device = sent(table, self.device)
        return self._on_device

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


def visible(positions: torch.Tensor, keys: int, window: int | None) -> torch.Tensor:
    """Which of the keys at positions 0, 1, ... each row attends to, bool [R, keys].

    All up to its own position; with a window, the last `window` of those.
    """
    at = torch.arange(keys, device=positions.device)
    own = positions[:, None]
    seen = at <= own
    return seen if window is None else seen & (at > own - window)


def sent(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device, behind what is queued there, without waiting for it."""
    if device.type != "cuda":
        return table.to(device)
    return table.pin_memory().to(device, non_blocking=True)
