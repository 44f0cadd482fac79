"""Attention by the fastest way that a device has."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from fusionrag_integrations.attention.blocked import blocked_attention
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.attention.segments import PrivateRows, Segments, copy_segments
from fusionrag_integrations.attention.spec import AttentionSpec


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: Rows,
    spec: AttentionSpec,
) -> torch.Tensor:
    """What the rows attend to, [Hq, R, D], in the queries' dtype.

    queries: rotated, [Hq, R, D], by row. keys, values: rotated, [Hkv, N, D], by position; query
    head h reads head h // (Hq / Hkv). Row i sees the keys up to its own position, as far as the
    window reaches.

    On CUDA by the Triton kernel, where Triton is installed and the heads are of a size that it
    knows; otherwise in blocks of rows.
    """
    if _by_triton(queries):
        from fusionrag_integrations.attention.sparse_attention import triton_attention

        return triton_attention(queries, keys, values, rows.on_device, spec)
    return blocked_attention(queries, keys, values, rows, spec)


def attend_in_place(
    layer: int,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: PrivateRows,
    segments: Segments,
    spec: AttentionSpec,
) -> torch.Tensor:
    """What the rows attend to among shared and private tokens, [Hq, R, D], in the queries' dtype.

    queries: rotated, [Hq, R, D]. keys, values: of private tokens, rotated, [Hkv, M, D]. Every
    position up to a row's own belongs to a segment or to a private token.

    A single row, where `attend` takes the Triton kernel, takes one that reads segments in place.
    More rows share a copy of the layer, which costs them less than rotating queries to each segment
    would: on an H100 a twentieth of the layer's attention at 15% of 32K.
    """
    if len(rows.rows) == 1 and _by_triton(queries):
        from fusionrag_integrations.attention.segment_attention import segment_attention

        return segment_attention(layer, queries, keys, values, rows, segments, spec)
    placed = by_position(layer, keys, values, rows, segments)
    return attend(queries, *placed, rows.rows, spec)


def by_position(
    layer: int, keys: torch.Tensor, values: torch.Tensor, rows: PrivateRows, segments: Segments
) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of one layer in one place: keys, values [Hkv, N, D].

    keys, values: of private tokens, [Hkv, M, D]. N reaches to the last segment's end, or the last
    private token. Zeros stand where there is nothing.
    """
    shape = (2, keys.shape[0], max(segments.stop, rows.end), keys.shape[2])
    placed = keys.new_zeros(shape)
    if can_gather(keys.device):
        from fusionrag_integrations.attention.gather import gather_segments

        gather_segments(segments, layer, placed[:1], placed[1:], by_token=False)
    else:
        copy_segments(segments, layer, placed[0], placed[1])
    for kv, private in zip(placed, (keys, values), strict=True):
        kv.index_copy_(1, rows.tokens, private)
    return placed[0], placed[1]


def can_gather(device: torch.device) -> bool:
    """Whether `gather.py` can be imported, and runs on this device."""
    return device.type == "cuda" and _has_triton()


def _by_triton(queries: torch.Tensor) -> bool:
    """Whether the kernels of attention can take these; only then are they imported."""
    if not can_gather(queries.device):
        return False
    from fusionrag_integrations.attention.sparse_attention import HEAD_SIZES

    return queries.shape[2] in HEAD_SIZES


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
