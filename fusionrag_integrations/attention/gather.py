"""Segments copied to their positions in Triton, all of them in one launch, keys rotated on the way.

A program copies a block of one segment's tokens, of one head of one layer. PyTorch needs a dozen
launches a segment, and a long prompt has a hundred of them.

shapes    out_keys, out_values [L, Hkv, N, D], of the same strides; table int64 [S, 6]
          cosines, sines float32 [L or 1, S or N, D]; other int32 [D]
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fusionrag_integrations.attention.segments import Segments

TABLE_COLUMNS = tl.constexpr(6)  # of `Segments.table`
BLOCK = 32  # tokens


@triton.jit(do_not_specialize=["first_layer"])
def gather_kernel(
    keys,
    table,
    cosines,
    sines,
    other,
    out_keys,
    out_values,
    first_layer,
    heads,
    rotation_layer,
    out_layer,
    out_head,
    out_row,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    BY_TOKEN: tl.constexpr,
):
    """keys: any tensor of the segments' dtype. BY_TOKEN: a rotation a position, not a segment."""
    segment = tl.program_id(1)
    layer = (tl.program_id(2) // heads).to(tl.int64)  # a buffer may have more than 2^31 elements
    head = (tl.program_id(2) % heads).to(tl.int64)
    entry = table + segment * TABLE_COLUMNS
    start = tl.load(entry)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    size = tl.arange(0, PADDED)
    inside = size < SIZE
    used = (token < tl.load(entry + 1))[:, None] & inside[None, :]

    there = (first_layer + layer) * tl.load(entry + 5) + head * tl.load(entry + 4)
    row = there + token[:, None] * SIZE  # a chunk's rows are contiguous
    source_keys = tl.load(entry + 2).to(tl.pointer_type(keys.dtype.element_ty)) + row
    source_values = tl.load(entry + 3).to(tl.pointer_type(keys.dtype.element_ty)) + row
    partner = tl.load(other + size, mask=inside, other=0)
    key = tl.load(source_keys + size[None, :], mask=used, other=0.0).to(tl.float32)
    paired = tl.load(source_keys + partner[None, :], mask=used, other=0.0).to(tl.float32)
    value = tl.load(source_values + size[None, :], mask=used, other=0.0)

    rotation = (first_layer + layer) * rotation_layer + size[None, :]
    if BY_TOKEN:
        rotation += (start + token[:, None]) * SIZE
    else:
        rotation += (segment + 0 * token[:, None]) * SIZE
    cosine = tl.load(cosines + rotation, mask=used, other=0.0)
    sine = tl.load(sines + rotation, mask=used, other=0.0)

    at = layer * out_layer + head * out_head + (start + token[:, None]) * out_row + size[None, :]
    rotated = key * cosine + paired * sine
    tl.store(out_keys + at, rotated.to(out_keys.dtype.element_ty), mask=used)
    tl.store(out_values + at, value.to(out_values.dtype.element_ty), mask=used)


def gather_segments(
    segments: Segments, first_layer: int, keys: torch.Tensor, values: torch.Tensor, by_token: bool
) -> None:
    """Put layers of segments, from `first_layer` on, where they belong in keys and values.

    keys, values: [L, Hkv, N, D] of the same strides, of any dtype; changed where segments stand.
    by_token: `segments.rotations` has one for every position, not for every segment.
    """
    layers, heads, _, size = keys.shape
    rotations = segments.rotations
    longest = max(segment.length for segment in segments.segments)
    gather_kernel[(triton.cdiv(longest, BLOCK), len(segments.segments), layers * heads)](
        *(segments.segments[0].keys, segments.table, rotations.cos, rotations.sin, rotations.other),
        *(keys, values, first_layer, heads),
        *((rotations.cos.stride(0) if len(rotations.cos) > 1 else 0), *keys.stride()[:3]),
        SIZE=size,
        PADDED=triton.next_power_of_2(size),
        BLOCK=BLOCK,
        BY_TOKEN=by_token,
    )
