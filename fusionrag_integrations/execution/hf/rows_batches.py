"""The rows of a pass, grouped once by what kind of KV they have: a layer calls each kind once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from fusionrag_integrations.attention.attend import attend
from fusionrag_integrations.attention.rows import sent
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.execution.rows_kv import RowsBatch, RowsKV

ReadKV = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A batch, and which rows of the pass it has: int64 [R], or some that stand together."""

    batch: RowsBatch
    rows: torch.Tensor | slice

    def of(self, states: torch.Tensor) -> torch.Tensor:
        """The group's rows of states [H, rows, D]."""
        return states[:, self.rows]


class RowsBatches:
    """All groups of a pass, as one batch."""

    def __init__(
        self,
        groups: Sequence[Group],
        device: torch.device,
        parts: Sequence[tuple[RowsKV, slice]] = (),
    ) -> None:
        """device: where the KV is. parts: that of each sequence, and which rows of the pass are
        its.
        """
        self._groups = groups
        self._parts = parts
        self.device = device

    @classmethod
    def of(cls, kvs: Sequence[RowsKV]) -> RowsBatches:
        """Group these, whose rows stand one behind the other in the pass."""
        kinds: defaultdict[Callable[..., RowsBatch], list[tuple[RowsKV, range]]] = defaultdict(list)
        starts = accumulate((len(kv.rows) for kv in kvs), initial=0)
        ranges = [range(*ends) for ends in pairwise(starts)]
        for kv, rows in zip(kvs, ranges, strict=True):
            kinds[kv.batch].append((kv, rows))
        device = kvs[0].rows.device
        groups = [
            Group(batch([kv for kv, _ in alike]), _joined([rows for _, rows in alike], device))
            for batch, alike in kinds.items()
        ]
        slices = [slice(rows.start, rows.stop) for rows in ranges]
        return cls(groups, device, list(zip(kvs, slices, strict=True)))

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put all rows' keys and values [Hkv, R, D] in their places."""
        for group in self._groups:
            group.batch.write(layer, group.of(keys), group.of(values))

    def attend(self, layer: int, queries: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """What all rows' queries [Hq, R, D] attend to."""
        if len(self._groups) == 1:
            return self._groups[0].batch.attend(layer, queries, spec)
        whole = torch.empty_like(queries)
        for group in self._groups:
            whole[:, group.rows] = group.batch.attend(layer, group.of(queries), spec)
        return whole

    def attend_to_read(
        self, layer: int, queries: torch.Tensor, spec: AttentionSpec, read: ReadKV
    ) -> torch.Tensor:
        """The same where KV isn't attended to as it is, but as `read` makes it, for one sequence
        after the other.
        """
        whole = torch.empty_like(queries)
        for kv, rows in self._parts:
            whole[:, rows] = attend(queries[:, rows], *read(*kv.layer(layer)), kv.rows, spec)
        return whole


def _joined(ranges: Sequence[range], device: torch.device) -> torch.Tensor | slice:
    """A slice, where they stand together."""
    if all(one.stop == other.start for one, other in pairwise(ranges)):
        return slice(ranges[0].start, ranges[-1].stop)
    return sent(torch.cat([torch.arange(one.start, one.stop) for one in ranges]), device)
