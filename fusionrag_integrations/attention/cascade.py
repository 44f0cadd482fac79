"""Attention to chunks in place on a CPU, each chunk read once for all rows that see it.

A row's parts, one of each run of a chunk and one of its private tokens, are put together by how
much each weighs (the online softmax of Milakov and Gimelshein, 2018):

    out = sum_p total_p e^(max_p - max) mean_p / sum_p total_p e^(max_p - max)

A head's sink is one more part, without a value.

In the shape of SmolLM2-135M (9 query and 3 key heads of 64, float32, two threads), over eight
chunks of 250 tokens and 100 private ones, chunk by chunk for all requests takes 1.6 ms a layer for
8 of them and 5.3 ms for 32; request by request it would take 5.7 and 13 ms. For two to four it is
0.86 of the time, for one 1.3 times as long (0.6 ms), and a copy of the layer for each request takes
several times as long as either.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from fusionrag_integrations.attention.segments import PrivateRows
from fusionrag_integrations.attention.shared_runs import Reader, runs_of
from fusionrag_integrations.attention.spec import AttentionSpec

_Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Sums of values [Hkv, G, U, D], the greatest scores and the sums of powers, [Hkv, G, U]."""

_LOWEST = torch.finfo(torch.float32).min


class Cascade:
    """Rows of a pass over chunks in place; everything but the products is worked out once."""

    def __init__(self, rows: PrivateRows) -> None:
        self._rows = rows
        self._runs = runs_of(rows)
        readers = [reader for run in self._runs for reader in run]
        self._starts = list(accumulate(map(len, self._runs), initial=0))
        self._owners = torch.tensor([reader.row for reader in readers])
        self._parts_of = torch.cat([self._owners, torch.arange(len(rows))])
        rotations = [sequence.segments.rotations for sequence in rows.sequences]
        firsts = dict(
            zip(
                map(id, rotations),
                accumulate((table.cos.shape[1] for table in rotations), initial=0),
                strict=False,
            )
        )
        at = [firsts[id(one.sequence.segments.rotations)] + one.number for one in readers]
        self._cos, self._sin = (
            torch.cat(tables, dim=1)[:, at]
            for tables in ([one.cos for one in rotations], [one.sin for one in rotations])
        )
        self._other = rotations[0].other
        self._hidden: dict[int | None, list[torch.Tensor | None]] = {}

    def attend(self, layer: int, queries: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """See `attend_in_place`; in float32 within."""
        kv_heads, (heads, count, size) = self._rows.kv_heads, queries.shape
        wide = queries.float() * spec.scaling
        at = layer if len(self._cos) > 1 else 0
        asked = wide[:, self._owners]
        # The inverse rotation to where each run stands: a sine of the other sign.
        rotated = asked * self._cos[at] - asked[..., self._other] * self._sin[at]
        rotated = rotated.view(kv_heads, heads // kv_heads, -1, size)
        parts = [
            self._of_run(layer, rotated[:, :, start : start + len(run)], run, hidden, spec)
            for start, run, hidden in zip(
                self._starts, self._runs, self._hidden_from(spec.window), strict=False
            )
        ]
        plain = wide.view(kv_heads, heads // kv_heads, count, size)
        parts += self._private(layer, plain, spec)
        parts_of = self._parts_of
        if spec.sinks is not None:
            parts.append(_of_sinks(spec.sinks, plain))
            parts_of = torch.cat([parts_of, torch.arange(count)])
        return _combined(parts, parts_of, count).reshape(queries.shape).to(queries.dtype)

    def _of_run(
        self,
        layer: int,
        asked: torch.Tensor,
        run: Sequence[Reader],
        hidden: torch.Tensor | None,
        spec: AttentionSpec,
    ) -> _Parts:
        segment = run[0].segment
        tokens = slice(segment.source_start, segment.source_start + segment.length)
        kv = segment.keys[layer, :, tokens], segment.values[layer, :, tokens]
        return _part(asked, *kv, hidden, spec)

    def _private(self, layer: int, asked: torch.Tensor, spec: AttentionSpec) -> list[_Parts]:
        """Each row's over its sequence's private tokens up to its own."""
        first = [0] * len(self._rows)
        if spec.window is not None:
            first = self._rows.first_seen(spec.window).tolist()
        owners, slots = self._rows.owners.tolist(), self._rows.slots.tolist()
        parts = []
        for row, (owner, slot) in enumerate(zip(owners, slots, strict=True)):
            room, seen = self._rows.rooms[owner], slice(first[row], slot + 1)
            kv = room.keys[layer, :, seen], room.values[layer, :, seen]
            parts.append(_part(asked[:, :, row : row + 1], *kv, None, spec))
        return parts

    def _hidden_from(self, window: int | None) -> list[torch.Tensor | None]:
        """What the readers of each run don't see of it, bool [U, T]; None where they see all."""
        if window not in self._hidden:
            masks = [self._mask(run, window) for run in self._runs]
            self._hidden[window] = [mask if mask.any() else None for mask in masks]
        return self._hidden[window]

    def _mask(self, run: Sequence[Reader], window: int | None) -> torch.Tensor:
        length = run[0].segment.length
        starts = torch.tensor([reader.segment.start for reader in run])[:, None]
        own = self._rows.positions[[reader.row for reader in run]][:, None]
        at = starts + torch.arange(length)
        stale = [one.sequence.stale[one.segment.start :][:length] for one in run]
        hidden = torch.stack(stale).bool() | (at > own)
        return hidden if window is None else hidden | (at <= own - window)


def _part(
    asked: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor | None,
    spec: AttentionSpec,
) -> _Parts:
    """asked: scaled queries [Hkv, G, U, D]; keys, values: [Hkv, T, D]."""
    flat = asked.flatten(1, 2)
    scores = torch.bmm(flat, keys.float().transpose(1, 2)).view(*asked.shape[:3], -1)
    scores = spec.capped(scores)
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    highest = scores.amax(-1).clamp_(min=_LOWEST)  # of a row that sees nothing here, too
    powers = scores.sub_(highest[..., None]).exp_()
    sums = torch.bmm(powers.flatten(1, 2), values.float())
    return sums.view(asked.shape), highest, powers.sum(-1)


def _of_sinks(sinks: torch.Tensor, asked: torch.Tensor) -> _Parts:
    """sinks: [Hq]. asked: [Hkv, G, count, D]."""
    highest = sinks.float().view(*asked.shape[:2], 1).expand(asked.shape[:3])
    return torch.zeros_like(asked), highest, torch.ones_like(highest)


def _combined(parts: Sequence[_Parts], rows: torch.Tensor, count: int) -> torch.Tensor:
    """Parts of rows, of each any number, float32 [Hkv, G, count, D]. rows: of all parts, int64."""
    sums, maxima, totals = (torch.cat(kind, dim=2) for kind in zip(*parts, strict=True))
    shape = (*maxima.shape[:2], count)
    highest = maxima.new_full(shape, _LOWEST)
    highest.scatter_reduce_(2, rows.expand(maxima.shape), maxima, "amax")
    weights = (maxima - highest[:, :, rows]).exp_()
    total = totals.new_zeros(shape).index_add_(2, rows, weights * totals)
    whole = sums.new_zeros(*shape, sums.shape[3])
    return whole.index_add_(2, rows, sums * weights[..., None]) / total[..., None]
