"""KV as a pass uses it: of one sequence's rows, and of the rows of several whose KV is alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch

from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.attention.spec import AttentionSpec


class RowsBatch(Protocol):
    """Rows of several sequences whose KV is alike, one sequence's behind another's, in one pass."""

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the rows' rotated keys and their values [Hkv, R, D] in the place of older ones."""
        ...

    def attend(self, layer: int, queries: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """What the rows' rotated queries [Hq, R, D] attend to, each up to its own position."""
        ...


class FixedBatch(RowsBatch, Protocol):
    """One that can stand for others of one row each, in tensors that stay where they are."""

    def layout(self, heads: int) -> Hashable:
        """What no recorded pass can change: a batch stands for those of the same.

        heads: of queries.
        """
        ...

    def fix(self, window: int) -> None:
        """Have what layers of this window need in a tensor that stays, too."""
        ...

    def take(self, other: Any, heads: int) -> None:
        """Stand for another batch from now on; the same as it in number of rows and layout."""
        ...

    def move(self, other: Any) -> None:
        """The same, where it is of the sequences that this one stands for already."""
        ...


class RowsKV(Protocol):
    """KV of one sequence as a pass over some of its rows uses it. Owned by one pass."""

    @property
    def rows(self) -> Rows: ...

    @property
    def batch(self) -> Callable[[Sequence[Any]], RowsBatch]:
        """What makes a batch of such KV; KV is alike where this is the same."""
        ...

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys and values by position, up to the last row's, [Hkv, N, D]; to be read, no
        more.
        """
        ...
