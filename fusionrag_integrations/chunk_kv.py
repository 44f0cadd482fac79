"""Chunk + neighbours -> ChunkKV: the offline half of the method.

Isolated KV sees only the ingest prefix; fused KV also sees the neighbours (arXiv 2601.12904,
offline stage: similarity-guided preliminary cross-attention). The neighbours' own tokens are
not recomputed: their isolated KV is moved into place.

positions:  0 ......... P ............. P+N ......... P+N+T
            | prefix KV | neighbours' KV | chunk, computed |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from fusionrag_integrations.kernels import Rows, attend
from fusionrag_integrations.model import CausalModel, KVBuffer
from fusionrag_integrations.rope import rotate
from fusionrag_integrations.types import ChunkKV, ContextTrace, KVKind, LayerView


def prefill_prefix(model: CausalModel, token_ids: Sequence[int]) -> ChunkKV:
    """KV of the ingest prefix, which stands before every chunk. Its key is empty: not stored."""
    buffer = model.new_buffer(len(token_ids))
    model.compute_kv(token_ids, range(len(token_ids)), buffer)
    return _slice(model, buffer, 0, "", "isolated", tuple(token_ids), ())


def prefill_chunk(
    model: CausalModel, prefix: ChunkKV, token_ids: Sequence[int], *, key: str
) -> ChunkKV:
    """Isolated KV: prefill one chunk behind the prefix.

    It lies on the model's device, its keys in the canonical frame.
    """
    start = len(prefix.token_ids)
    buffer = model.new_buffer(start + len(token_ids))
    place_consecutively(model, buffer, [prefix])
    model.compute_kv(token_ids, range(start, start + len(token_ids)), buffer)
    return _slice(model, buffer, start, key, "isolated", tuple(token_ids), ())


def fuse_chunk(
    model: CausalModel,
    prefix: ChunkKV,
    isolated: ChunkKV,
    neighbours: Sequence[ChunkKV],
    *,
    key: str,
) -> tuple[ChunkKV, ContextTrace]:
    """Fused KV: prefill one chunk behind the prefix and its neighbours, and what that changed.

    isolated: the chunk's own KV. neighbours: isolated KV, at least one, in the order in which
    they stand before the chunk. The result lies on the model's device, its keys in the canonical
    frame.
    """
    token_ids = isolated.token_ids
    before = [prefix, *neighbours]
    sizes = [len(kv.token_ids) for kv in before]
    start, stop = sum(sizes), sum(sizes) + len(token_ids)
    buffer = model.new_buffer(stop)
    place_consecutively(model, buffer, before)
    capture = _SegmentCapture(Rows(range(start, stop), model.device), [*sizes, len(token_ids)])
    model.compute_kv(token_ids, range(start, stop), buffer, capture)
    names = tuple(kv.key for kv in neighbours)
    fused = _slice(model, buffer, start, key, "fused", token_ids, names)
    given = capture.mean()
    moved = deviation((fused.keys, fused.values), (isolated.keys, isolated.values))
    return fused, ContextTrace(
        sensitivity=tuple(moved.mean(0).tolist()),
        outside=tuple(given[:, 1:-1].sum(1).tolist()),
        inside=tuple(given[:, -1].tolist()),
        neighbours=names,
        by_neighbour=tuple(given[:, 1:-1].mean(0).tolist()),
        neighbour_tokens=sum(sizes[1:]),
    )


class _SegmentCapture:
    """Adds up, over layers, the attention that rows give to each segment of what they see.

    Attention to a segment is what attention makes of values that are 1 there and 0 elsewhere: one
    more pass of the same kernel, which never holds all weights.
    """

    def __init__(self, rows: Rows, sizes: Sequence[int]) -> None:
        self._rows = rows
        self._sizes = torch.tensor(sizes, device=rows.on_device.device)
        self._values: list[torch.Tensor] = []  # the same in all layers
        self._sums: list[torch.Tensor] = []

    def record(self, layer: int, view: LayerView) -> None:
        """Count one layer, mean over heads."""
        if not self._values:
            segments = torch.eye(len(self._sizes)).to(view.keys)
            columns = segments.repeat_interleave(self._sizes, dim=0)  # [N, segments]
            self._values = _as_values(columns, view.keys)
        parts = [
            attend(view.queries, view.keys, part, self._rows, view.scaling, view.window)
            for part in self._values
        ]
        given = torch.cat(parts, dim=2)[:, :, : len(self._sizes)]
        self._sums.append(given.float().mean(0))

    def mean(self) -> torch.Tensor:
        """Attention by segment, mean over layers, float32 [R, segments]."""
        return torch.stack(self._sums).mean(0)


def _as_values(columns: torch.Tensor, keys: torch.Tensor) -> list[torch.Tensor]:
    """Columns [N, C] as values for all heads, as wide as the keys: [Hkv, N, D] each."""
    size = keys.shape[2]
    padded = pad(columns, (0, -columns.shape[1] % size))
    return [part.expand(keys.shape) for part in torch.split(padded, size, dim=1)]


def deviation(
    kv: tuple[torch.Tensor, torch.Tensor], reference: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Squared distance of each token's keys and values from others, float32 [L, T].

    Both: keys and values [L, Hkv, T, D]. Relative to the reference's mean squared size in each
    layer, which differs by orders of magnitude; mean over keys and values.
    """
    moved = []
    for mine, other in zip(kv, reference, strict=True):
        old = other.to(mine.device).float()
        size = old.square().sum((1, 3)).mean(1, keepdim=True)  # [L, 1]
        moved.append((mine.float() - old).square().sum((1, 3)) / size)
    return torch.stack(moved).mean(0)


def place_consecutively(model: CausalModel, buffer: KVBuffer, kvs: Sequence[ChunkKV]) -> None:
    """Write `kvs` one behind another from position 0 on. Changes the buffer, not the KV."""
    start = 0
    for kv in kvs:
        stop = start + len(kv.token_ids)
        buffer.place(start, kv.keys, kv.values, model.rotation(range(start, stop)))
        start = stop


def _slice(
    model: CausalModel,
    buffer: KVBuffer,
    start: int,
    key: str,
    kind: KVKind,
    token_ids: tuple[int, ...],
    neighbours: tuple[str, ...],
) -> ChunkKV:
    stop = start + len(token_ids)
    back = model.rotation(range(start, stop)).inverse()
    return ChunkKV(
        key=key,
        kind=kind,
        token_ids=token_ids,
        keys=rotate(buffer.keys[:, :, start:stop], back),
        values=buffer.values[:, :, start:stop].clone(),
        neighbours=neighbours,
    )
