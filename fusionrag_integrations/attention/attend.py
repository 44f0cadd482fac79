"""Attention by the fastest way that a device has."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch

from fusionrag_integrations.attention.blocked import blocked_attention
from fusionrag_integrations.attention.cascade import Cascade
from fusionrag_integrations.attention.placed import PlacedRows
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.attention.segments import PrivateRows
from fusionrag_integrations.attention.sequences import Room, SequenceRows
from fusionrag_integrations.attention.spec import AttentionSpec


def attend_rows(
    layer: int, queries: torch.Tensor, rows: SequenceRows, spec: AttentionSpec
) -> torch.Tensor:
    """What the rows attend to in a layer, each in its own sequence, [Hq, R, D], in their dtype.

    queries: rotated, [Hq, R, D], by row; query head h reads head h // (Hq / Hkv). A row sees the
    slots up to its own, as far as the window reaches.

    On CUDA by the Triton kernel, where Triton is installed and the heads are of a size that it
    knows; otherwise in blocks of rows. Rows of other sequences change no result but by how sums are
    rounded: on a CPU not at all.
    """
    if _by_triton(rows):
        from fusionrag_integrations.attention.sparse_attention import triton_attention

        return triton_attention(layer, queries, rows, spec)
    return blocked_attention(layer, queries, rows, spec)


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: Rows,
    spec: AttentionSpec,
) -> torch.Tensor:
    """The same of one sequence, whose keys and values are given by position, [Hkv, N, D]."""
    return attend_rows(0, queries, SequenceRows([rows], [Room(keys[None], values[None])]), spec)


class InPlaceAttention(Protocol):
    """What rows attend to among shared chunks and their own private tokens; made for one pass."""

    def attend(self, layer: int, queries: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """As `attend_rows` does. Every position up to a row's own is a segment's or a private
        token's.
        """
        ...


def attention_in_place(rows: PrivateRows) -> InPlaceAttention:
    """The fastest: where each sequence has one row, each run of a chunk is read once for all rows;
    more rows attend to a copy of the layer.
    """
    one_each = len(rows) == len(rows.rows)
    if one_each and _by_triton(rows):
        from fusionrag_integrations.attention.segment_attention import SegmentAttention

        return SegmentAttention(rows)
    return Cascade(rows) if one_each and rows.device.type == "cpu" else _PlacedAttention(rows)


class _PlacedAttention:
    """Attention to a copy of each layer."""

    def __init__(self, rows: PrivateRows) -> None:
        self._placed = PlacedRows(rows.rows, rows.sequences, can_gather(rows.device))

    def attend(self, layer: int, queries: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        return attend_rows(0, queries, self._placed.load(layer), spec)


def write_rows(layer: int, keys: torch.Tensor, values: torch.Tensor, rows: SequenceRows) -> None:
    """Put the rows' rotated keys and their values [Hkv, R, D] into their slots in a layer.

    On CUDA in one launch. On a CPU sequence by sequence, which takes a tenth of the time that their
    attention takes to 500 keys.
    """
    if can_gather(keys.device):
        from fusionrag_integrations.attention.scatter import scatter_rows

        scatter_rows(layer, keys, values, rows)
        return
    for number, room in enumerate(rows.rooms):
        own = slice(*rows.starts[number : number + 2])
        for kept, new in ((room.keys, keys), (room.values, values)):
            kept[layer].index_copy_(1, rows.slots[own], new[:, own])


def can_gather(device: torch.device) -> bool:
    """Whether what copies KV in Triton can be imported, and runs on this device."""
    return device.type == "cuda" and _has_triton()


def attends_in_triton(device: torch.device, size: int) -> bool:
    """Whether the kernels of attention take heads of `size` there; only then are they imported."""
    if not can_gather(device):
        return False
    from fusionrag_integrations.attention.sparse_attention import HEAD_SIZES

    return size in HEAD_SIZES


def _by_triton(rows: SequenceRows) -> bool:
    return attends_in_triton(rows.device, rows.rooms[0].keys.shape[3])


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
