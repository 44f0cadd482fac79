"""Segments copied to their positions in Triton, all of them in one launch, keys rotated on the way.

A program copies a block of one segment's tokens, of one head of one layer. PyTorch needs a dozen
launches a segment, and a long prompt has a hundred of them.

shapes    out_keys, out_values [L, Hkv, N, D], of the same strides; table int64 [S, 9]
          other int32 [D]; cosines and sines, float32 [L or 1, S or N, D], by their addresses
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from fusionrag_integrations.attention.rows import sent
from fusionrag_integrations.attention.segments import Segments

TABLE_COLUMNS = tl.constexpr(9)  # of `table_of`
BLOCK = 32  # tokens


@triton.jit(do_not_specialize=["first_layer"])
def gather_kernel(
    keys,
    table,
    other,
    out_keys,
    out_values,
    first_layer,
    heads,
    out_layer,
    out_head,
    out_row,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    BY_TOKEN: tl.constexpr,
):
    """keys: any tensor of the segments' dtype. BY_TOKEN: a rotation a position, not a segment."""
    entry = table + tl.program_id(1) * TABLE_COLUMNS
    layer = (tl.program_id(2) // heads).to(tl.int64)  # a buffer may have more than 2^31 elements
    head = (tl.program_id(2) % heads).to(tl.int64)
    start = tl.load(entry)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    size = tl.arange(0, PADDED)
    inside = size < SIZE
    used = (token < tl.load(entry + 3))[:, None] & inside[None, :]

    there = (first_layer + layer) * tl.load(entry + 5) + head * tl.load(entry + 4)
    row = there + token[:, None] * SIZE  # a chunk's rows are contiguous
    source_keys = tl.load(entry + 1).to(tl.pointer_type(keys.dtype.element_ty)) + row
    source_values = tl.load(entry + 2).to(tl.pointer_type(keys.dtype.element_ty)) + row
    partner = tl.load(other + size, mask=inside, other=0)
    key = tl.load(source_keys + size[None, :], mask=used, other=0.0).to(tl.float32)
    paired = tl.load(source_keys + partner[None, :], mask=used, other=0.0).to(tl.float32)
    value = tl.load(source_values + size[None, :], mask=used, other=0.0)

    rotation = (first_layer + layer) * tl.load(entry + 8) + size[None, :]
    if BY_TOKEN:
        rotation += (start + token[:, None]) * SIZE
    cosines = tl.load(entry + 6).to(tl.pointer_type(tl.float32))
    sines = tl.load(entry + 7).to(tl.pointer_type(tl.float32))
    cosine = tl.load(cosines + rotation + 0 * token[:, None], mask=used, other=0.0)
    sine = tl.load(sines + rotation + 0 * token[:, None], mask=used, other=0.0)

    at = layer * out_layer + head * out_head + (start + token[:, None]) * out_row + size[None, :]
    rotated = key * cosine + paired * sine
    tl.store(out_keys + at, rotated.to(out_keys.dtype.element_ty), mask=used)
    tl.store(out_values + at, value.to(out_values.dtype.element_ty), mask=used)


def table_of(several: Sequence[Segments], starts: Sequence[int], by_token: bool) -> torch.Tensor:
    """Segments of several sequences, int64 [S, 9]: where each goes, `Segment.run`, its rotation.

    starts: where each sequence begins among the tokens that are copied to.
    """
    entries = [
        [start + segment.start, *run, *segments.rotation_entry(number, of_each=not by_token)]
        for segments, start in zip(several, starts, strict=True)
        for number, (segment, run) in enumerate(zip(segments.segments, segments.runs, strict=True))
    ]
    return sent(torch.tensor(entries, dtype=torch.int64), several[0].rotations.cos.device)


def gather_segments(
    several: Sequence[Segments],
    table: torch.Tensor,
    first_layer: int,
    keys: torch.Tensor,
    values: torch.Tensor,
    by_token: bool,
) -> None:
    """Put layers of segments, from `first_layer` on, where they belong in keys and values.

    table: of these, by `table_of`. keys, values: [L, Hkv, N, D] of the same strides, of any dtype;
    changed where segments stand. by_token: rotations are of every position, not of every segment.
    """
    layers, heads, _, size = keys.shape
    longest = max(segment.length for segments in several for segment in segments.segments)
    gather_kernel[(triton.cdiv(longest, BLOCK), len(table), layers * heads)](
        *(several[0].segments[0].keys, table, several[0].rotations.other),
        *(keys, values, first_layer, heads, *keys.stride()[:3]),
        SIZE=size,
        PADDED=triton.next_power_of_2(size),
        BLOCK=BLOCK,
        BY_TOKEN=by_token,
    )
