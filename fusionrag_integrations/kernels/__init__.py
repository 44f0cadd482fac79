"""Attention of rows at any positions over keys and values by position: what models run.

rows.py               where the rows stand
reference.py          the formula
blocked.py            in blocks of rows, by PyTorch's own attention
sparse_attention.py   in Triton
segments.py           keys and values that lie here and there: the formula
segment_attention.py  the same in Triton
online_softmax.py     what both Triton kernels are made of
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
    by_position,
    gathering_attention,
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

    queries: rotated, [Hq, R, D]. keys, values: of own tokens, rotated, [Hkv, M, D]. Where `attend`
    takes the Triton kernel, this takes one that reads segments where they lie; otherwise
    everything is copied to one place in every layer.
    """
    if _by_triton(queries):
        from fusionrag_integrations.kernels.segment_attention import segment_attention

        return segment_attention(layer, queries, keys, values, rows, segments, scaling, window)
    return gathering_attention(layer, queries, keys, values, rows, segments, scaling, window)


def _by_triton(queries: torch.Tensor) -> bool:
    """Whether the Triton kernels can take these; only then are they imported."""
    if queries.device.type != "cuda" or not _has_triton():
        return False
    from fusionrag_integrations.kernels.sparse_attention import HEAD_SIZES

    return queries.shape[2] in HEAD_SIZES


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
