"""Attention to chunks in place, in Triton: the second mode of `sparse_attention`.

A program takes one key head, a block of rows of all the query heads that share it, and some of the
segments; one that has the last of them takes the sequence's private tokens too. It rotates its
queries once a segment, which costs less than rotating the segment's keys, and copies none of them.

shapes    queries, out [Hq, R, D]; keys, values of private tokens [Hkv, M, D]; table int64 [S, 6]
          cosines, sines float32 [S, D]; other int32 [D]; stale uint8 [N]
          positions, slots, first_slots int64 [R]
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fusionrag_integrations.attention.gather import TABLE_COLUMNS
from fusionrag_integrations.attention.launch import (
    Launch,
    Scratch,
    head_bytes,
    launch_for,
    multiprocessors,
)
from fusionrag_integrations.attention.online_softmax import (
    LOG2_E,
    add_keys,
    finish,
    rows_of_program,
)
from fusionrag_integrations.attention.segments import ALIGNED, PrivateRows, Segments
from fusionrag_integrations.attention.sparse_attention import check
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.errors import InvalidInputError


@triton.jit(do_not_specialize=["layer"])
def attend_in_place_kernel(
    queries,
    keys,
    values,
    table,
    cosines,
    sines,
    other,
    stale,
    positions,
    slots,
    first_slots,
    out,
    parts,
    maxima,
    totals,
    layer,
    rows,
    group,
    scaling,
    window,
    segments,
    split_segments,
    query_head,
    query_row,
    key_head,
    key_row,
    value_head,
    value_row,
    out_head,
    out_row,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDE: tl.constexpr,
):
    """scaling: with log2(e) in it. WIDE: multiply in float32 (the interpreter can't in bf16)."""
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    row, head, real, position, first, last = rows_of_program(
        positions, rows, group, kv_head, BLOCK_M=BLOCK_M
    )

    size = tl.arange(0, PADDED)
    inside = size < SIZE
    used = real[:, None] & inside[None, :]
    of_row = queries + head[:, None] * query_head + row[:, None] * query_row
    query = tl.load(of_row + size[None, :], mask=used, other=0.0)
    partner = tl.load(other + size, mask=inside, other=0)
    paired = tl.load(of_row + partner[None, :], mask=used, other=0.0)

    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, PADDED], tl.float32)
    begin_segment = part * split_segments
    end_segment = tl.minimum(segments, begin_segment + split_segments)
    for segment in range(begin_segment, end_segment):
        entry = table + segment * TABLE_COLUMNS
        start = tl.load(entry).to(tl.int32)
        end = tl.minimum(tl.load(entry + 1).to(tl.int32), last + 1 - start)
        begin = 0
        if WINDOWED:
            begin = tl.maximum(0, first - window + 1 - start) // BLOCK_N * BLOCK_N
        if begin < end:
            clear = begin  # up to here every row sees every key, but for the stale ones
            if not WINDOWED:
                clear = tl.maximum(0, tl.minimum(end, first + 1 - start)) // BLOCK_N * BLOCK_N
            # The inverse rotation to the segment's place: a sine of the other sign.
            cosine = tl.load(cosines + segment * SIZE + size, mask=inside, other=0.0)
            sine = tl.load(sines + segment * SIZE + size, mask=inside, other=0.0)
            rotated = query.to(tl.float32) * cosine[None, :] - paired.to(tl.float32) * sine[None, :]
            rotated = rotated.to(queries.dtype.element_ty)
            if WIDE:
                rotated = rotated.to(tl.float32)
            there = layer * tl.load(entry + 5) + kv_head * tl.load(entry + 4)
            segment_keys = tl.load(entry + 2).to(tl.pointer_type(keys.dtype.element_ty)) + there
            segment_values = tl.load(entry + 3).to(tl.pointer_type(keys.dtype.element_ty)) + there
            segment_keys = tl.multiple_of(segment_keys, 16)  # bytes, as `ALIGNED`
            segment_values = tl.multiple_of(segment_values, 16)
            highest, total, sums = add_keys(
                rotated,
                position - start,
                position - start - window + 1,
                segment_keys + size[:, None],
                segment_values + size[None, :],
                stale + start,
                begin,
                clear,
                end,
                highest,
                total,
                sums,
                inside,
                SIZE,  # a chunk's rows are contiguous
                SIZE,
                scaling,
                BLOCK_N=BLOCK_N,
                WINDOWED=WINDOWED,
                STALE=True,
                WIDE=WIDE,
            )
    if end_segment == segments:
        slot = tl.load(slots + row, mask=real, other=-1).to(tl.int32)
        last_slot = tl.max(slot)
        low = slot
        begin = 0
        clear = 0
        if WINDOWED:
            low = tl.load(first_slots + row, mask=real, other=0).to(tl.int32)
            begin = tl.min(tl.where(real, low, last_slot)) // BLOCK_N * BLOCK_N
            clear = begin
        else:
            first_slot = tl.min(tl.where(real, slot, last_slot))
            clear = (first_slot + 1) // BLOCK_N * BLOCK_N
        plain = query
        if WIDE:
            plain = query.to(tl.float32)
        highest, total, sums = add_keys(
            plain,
            slot,
            low,
            keys + kv_head * key_head + size[:, None],
            values + kv_head * value_head + size[None, :],
            stale,  # of private tokens none is
            begin,
            clear,
            last_slot + 1,
            highest,
            total,
            sums,
            inside,
            key_row,
            value_row,
            scaling,
            BLOCK_N=BLOCK_N,
            WINDOWED=WINDOWED,
            STALE=False,
            WIDE=WIDE,
        )
    heads = tl.num_programs(1) * group
    finish(
        highest,
        total,
        sums,
        head,
        row,
        real,
        heads,
        rows,
        part,
        out,
        parts,
        maxima,
        totals,
        out_head,
        out_row,
        size,
        inside,
        SIZE=SIZE,
        SPLIT=SPLIT,
    )


def segment_attention(
    layer: int,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: PrivateRows,
    segments: Segments,
    spec: AttentionSpec,
    launch: Launch | None = None,
) -> torch.Tensor:
    """See `attend_in_place`. Raises `InvalidInputError` as `triton_attention` does."""
    check(queries, keys, values, rows.rows.on_device)
    chunk = segments.segments[0].keys
    if chunk.dtype != keys.dtype or chunk.shape[1::2] != keys.shape[::2]:
        raise InvalidInputError(
            f"Chunks have KV in {chunk.dtype} {tuple(chunk.shape)}; private tokens in {keys.dtype} "
            f"{tuple(keys.shape)}."
        )
    if not segments.aligned:
        raise InvalidInputError(
            "Chunks that are read in place must begin at a multiple of "
            f"{ALIGNED} bytes; some are parts of larger tensors. Give copies."
        )
    heads, count, size = queries.shape
    kv_heads, group = keys.shape[0], heads // keys.shape[0]
    number = len(segments.segments)
    if launch is None:
        many = multiprocessors(queries.device)
        launch = launch_for(heads, kv_heads, count, segments.stop, head_bytes(queries), many)
    split_segments = triton.cdiv(number, launch.splits)
    splits = triton.cdiv(number, split_segments)
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    scratch = Scratch.of(splits, queries)
    attend_in_place_kernel[(triton.cdiv(count * group, launch.block_m), kv_heads, splits)](
        *(queries, keys, values, segments.table, *segments.rotations.layer(layer)),
        *(segments.rotations.other, rows.stale, rows.rows.on_device, rows.slots),
        rows.slots if spec.window is None else rows.first_slots(spec.window),
        *(out, scratch.parts, scratch.maxima, scratch.totals),
        *(layer, count, group, spec.scaling * LOG2_E, spec.window or 0, number, split_segments),
        *(stride for tensor in (queries, keys, values, out) for stride in tensor.stride()[:2]),
        SIZE=size,
        PADDED=triton.next_power_of_2(size),
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        WINDOWED=spec.window is not None,
        SPLIT=splits > 1,
        WIDE=queries.device.type == "cpu",
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    scratch.combine_into(out)
    return out
