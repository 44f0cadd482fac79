"""Attention of rows at any positions over keys and values by position: what models run.

rows.py               where the rows stand
reference.py          the formula
blocked.py            in blocks of rows, by PyTorch's own attention
sparse_attention.py   in Triton
segments.py           keys and values that lie here and there
gather.py             a copy of them in one place, in Triton
segment_attention.py  attention to them where they lie, in Triton
online_softmax.py     what both kernels of attention are made of
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from fusionrag_integrations.kernels.blocked import blocked_attention
from fusionrag_integrations.kernels.reference import reference_attention, visible
from fusionrag_integrations.kernels.rows import MovingRow, Rows
from fusionrag_integrations.kernels.segments import (
    OwnRows,
    Segment,
    Segments,
    copy_segments,
)

__all__ = [
    "MovingRow",
    "OwnRows",
    "Rows",
    "Segment",
    "Segments",
    "attend",
    "attend_in_place",
    "by_position",
    "can_gather",
    "reference_attention",
    "visible",
]


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: Rows,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """What the rows attend to, [Hq, R, D], in the queries' dtype.

    queries: rotated, [Hq, R, D], by row. keys, values: rotated, [Hkv, N, D], by position; query
    head h reads head h // (Hq / Hkv). Row i sees the keys up to its own position, with a window
    the last `window` of them. scaling: what QK is multiplied with.

    On CUDA by the Triton kernel, where Triton is installed and the heads are of a size that it
    knows; otherwise in blocks of rows.
    """
    if _by_triton(queries):
        from fusionrag_integrations.kernels.sparse_attention import triton_attention

        return triton_attention(queries, keys, values, rows.on_device, scaling, window)
    return blocked_attention(queries, keys, values, rows, scaling, window)


def attend_in_place(
    layer: int,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: OwnRows,
    segments: Segments,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """What the rows attend to among segments and own tokens, [Hq, R, D], in the queries' dtype.

    queries: rotated, [Hq, R, D]. keys, values: of own tokens, rotated, [Hkv, M, D]. Up to a row's
    own position, each belongs to a segment or to an own token.

    A single row, where `attend` takes the Triton kernel, takes one that reads segments where they
    lie. More rows share a copy of the layer in one place, which costs them less than turning
    queries to each segment would: on an H100 a twentieth of the layer's attention at 15% of 32K.
    """
    if len(rows.rows) == 1 and _by_triton(queries):
        from fusionrag_integrations.kernels.segment_attention import segment_attention

        return segment_attention(layer, queries, keys, values, rows, segments, scaling, window)
    placed = by_position(layer, keys, values, rows, segments)
    return attend(queries, *placed, rows.rows, scaling, window)


def by_position(
    layer: int, keys: torch.Tensor, values: torch.Tensor, rows: OwnRows, segments: Segments
) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of one layer in one place: keys, values [Hkv, N, D].

    keys, values: of own tokens, [Hkv, M, D]. N reaches to the last segment's end, or the last own
    token. Zeros stand where there is nothing.
    """
    shape = (2, keys.shape[0], max(segments.stop, rows.end), keys.shape[2])
    placed = keys.new_zeros(shape)
    if can_gather(keys.device):
        from fusionrag_integrations.kernels.gather import gather_segments

        gather_segments(segments, layer, placed[:1], placed[1:], by_token=False)
    else:
        copy_segments(segments, layer, placed[0], placed[1])
    for kv, own in zip(placed, (keys, values), strict=True):
        kv.index_copy_(1, rows.own, own)
    return placed[0], placed[1]


def can_gather(device: torch.device) -> bool:
    """Whether `gather.py` can be imported, and runs on this device."""
    return device.type == "cuda" and _has_triton()


def _by_triton(queries: torch.Tensor) -> bool:
    """Whether the kernels of attention can take these; only then are they imported."""
    if not can_gather(queries.device):
        return False
    from fusionrag_integrations.kernels.sparse_attention import HEAD_SIZES

    return queries.shape[2] in HEAD_SIZES


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
