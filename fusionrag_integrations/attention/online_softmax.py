"""What both Triton kernels are made of: blocks of keys into an online softmax, and its end.

Softmax is in float32 and base 2. Rows of all the query heads that share a key head are one axis.

upto, low    the last and first key that each row sees, int32 [M]
highest      the greatest score so far, [M]; total: the sum of powers, [M]; sums: of values, [M, D]
parts        partial outputs float32 [S, Hq, R, D]; maxima and totals float32 [S, Hq, R]
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def rows_of_program(positions, rows, group, kv_head, BLOCK_M: tl.constexpr):
    """Rows and query heads of a program, which are real, where they stand, the first and last."""
    flat = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = flat // group
    head = kv_head * group + flat % group
    real = row < rows
    position = tl.load(positions + row, mask=real, other=-1).to(tl.int32)
    last = tl.max(position)
    first = tl.min(tl.where(real, position, last))
    return row, head, real, position, first, last


@triton.jit
def add_block(
    query,
    upto,
    low,
    keys,
    values,
    stale,
    start,
    end,
    highest,
    total,
    sums,
    inside,
    key_row,
    value_row,
    scaling,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    STALE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One block of keys. MASKED: not every row sees all of it. STALE: some keys no row sees."""
    place = start + tl.arange(0, BLOCK_N)
    there = place < end
    of_keys = inside[:, None]
    of_values = inside[None, :]
    if MASKED:
        of_keys = of_keys & there[None, :]
        of_values = of_values & there[:, None]
    key = tl.load(keys + place[None, :] * key_row, mask=of_keys, other=0.0)
    value = tl.load(values + place[:, None] * value_row, mask=of_values, other=0.0)
    if WIDE:
        key = key.to(tl.float32)
        value = value.to(tl.float32)
    score = tl.dot(query, key, input_precision="ieee") * scaling
    if MASKED:
        seen = (place[None, :] <= upto[:, None]) & there[None, :]
        if WINDOWED:
            seen = seen & (place[None, :] >= low[:, None])
        score = tl.where(seen, score, float("-inf"))
    if STALE:
        old = tl.load(stale + place, mask=there, other=0)
        score = tl.where((old != 0)[None, :], float("-inf"), score)
    higher = tl.maximum(highest, tl.max(score, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # of a row that saw nothing yet
    power = tl.exp2(score - base[:, None])
    fade = tl.exp2(highest - base)
    total = total * fade + tl.sum(power, 1)
    sums = sums * fade[:, None]
    sums = tl.dot(power.to(value.dtype), value, sums, input_precision="ieee")
    return higher, total, sums


@triton.jit
def add_keys(
    query,
    upto,
    low,
    keys,
    values,
    stale,
    begin,
    clear,
    end,
    highest,
    total,
    sums,
    inside,
    key_row,
    value_row,
    scaling,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    STALE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The keys [begin, end). Up to `clear`, a whole number of blocks, every row sees every key."""
    for start in range(begin, clear, BLOCK_N):
        highest, total, sums = add_block(
            query,
            upto,
            low,
            keys,
            values,
            stale,
            start,
            end,
            highest,
            total,
            sums,
            inside,
            key_row,
            value_row,
            scaling,
            BLOCK_N=BLOCK_N,
            MASKED=False,
            WINDOWED=WINDOWED,
            STALE=STALE,
            WIDE=WIDE,
        )
    for start in range(clear, end, BLOCK_N):
        highest, total, sums = add_block(
            query,
            upto,
            low,
            keys,
            values,
            stale,
            start,
            end,
            highest,
            total,
            sums,
            inside,
            key_row,
            value_row,
            scaling,
            BLOCK_N=BLOCK_N,
            MASKED=True,
            WINDOWED=WINDOWED,
            STALE=STALE,
            WIDE=WIDE,
        )
    return highest, total, sums


@triton.jit
def finish(
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
    SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Write what a program has found: the output, or its part of it."""
    if SPLIT:
        place = (part * heads + head) * rows + row
        tl.store(maxima + place, highest, mask=real)
        tl.store(totals + place, total, mask=real)
        at = parts + place[:, None] * SIZE + size[None, :]
        tl.store(at, sums, mask=real[:, None] & inside[None, :])
    else:
        result = sums / tl.where(real, total, 1.0)[:, None]
        at = out + head[:, None] * out_head + row[:, None] * out_row + size[None, :]
        tl.store(at, result.to(out.dtype.element_ty), mask=real[:, None] & inside[None, :])


@triton.jit
def combine(
    parts,
    maxima,
    totals,
    out,
    splits,
    rows,
    heads,
    out_head,
    out_row,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One row of one head: its parts, weighed by how high their maxima are."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    size = tl.arange(0, PADDED)
    part = tl.arange(0, SPLITS)
    real = part < splits
    place = (part * heads + head) * rows + row
    highest = tl.load(maxima + place, mask=real, other=float("-inf"))
    weight = tl.exp2(highest - tl.max(highest))
    total = tl.sum(weight * tl.load(totals + place, mask=real, other=0.0))
    at = parts + place[:, None] * SIZE + size[None, :]
    partial = tl.load(at, mask=real[:, None] & (size < SIZE)[None, :], other=0.0)
    result = tl.sum(weight[:, None] * partial, 0) / total
    at = out + head * out_head + row * out_row + size
    tl.store(at, result.to(out.dtype.element_ty), mask=size < SIZE)
