"""What both Triton kernels are made of: blocks of keys into an online softmax, and its end.

Softmax is in float32 and base 2, so that scaling, soft cap and sinks come with log2(e) in them.
Rows of all the query heads that share a key head are one axis.

upto, low    the last and first key that each row sees, int32 [M]
highest      the greatest score so far, [M]; total: the sum of powers, [M]; sums: of values, [M, D]
parts        partial outputs float32 [P, Hq, D]; maxima and totals float32 [P, Hq]: those of a row
             behind one another, row r's from first_parts[r] on, int64 [R + 1]
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


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
    softcap,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    STALE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One block of keys. MASKED: not every row sees all of it. STALE: nor some keys, by row."""
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
    if CAPPED:
        score = softcap * (2.0 * tl.sigmoid(2.0 * score / softcap) - 1.0)  # of the tanh
    if MASKED:
        seen = (place[None, :] <= upto[:, None]) & there[None, :]
        if WINDOWED:
            seen = seen & (place[None, :] >= low[:, None])
        score = tl.where(seen, score, float("-inf"))
    if STALE:
        reached = (place[None, :] <= upto[:, None]) & there[None, :]
        old = tl.load(stale[:, None] + place[None, :], mask=reached, other=0)
        score = tl.where(old != 0, float("-inf"), score)
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
    softcap,
    BLOCK_N: tl.constexpr,
    CAPPED: tl.constexpr,
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
            softcap,
            BLOCK_N=BLOCK_N,
            MASKED=False,
            CAPPED=CAPPED,
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
            softcap,
            BLOCK_N=BLOCK_N,
            MASKED=True,
            CAPPED=CAPPED,
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
    """Write what a program has found: the output, or its part of it, the `part`-th of all."""
    if SPLIT:
        place = part * heads + head
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
    first_parts,
    out,
    out_head,
    out_row,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of one head: its parts, however many, weighed by how high their maxima are."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    size = tl.arange(0, PADDED)
    first = tl.load(first_parts + row)
    count = (tl.load(first_parts + row + 1) - first).to(tl.int32)
    highest = float("-inf")
    total = 0.0
    result = tl.zeros([PADDED], tl.float32)
    for start in range(0, count, BLOCK):
        part = start + tl.arange(0, BLOCK)
        real = part < count
        place = (first + part) * heads + head
        maximum = tl.load(maxima + place, mask=real, other=float("-inf"))
        higher = tl.maximum(highest, tl.max(maximum))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # where nothing was seen yet
        weight = tl.exp2(maximum - base)
        fade = tl.exp2(highest - base)
        at = parts + place[:, None] * SIZE + size[None, :]
        partial = tl.load(at, mask=real[:, None] & (size < SIZE)[None, :], other=0.0)
        found = tl.load(totals + place, mask=real, other=0.0)
        total = total * fade + tl.sum(weight * found)
        result = result * fade + tl.sum(weight[:, None] * partial, 0)
        highest = higher
    at = out + head * out_head + row * out_row + size
    tl.store(at, (result / total).to(out.dtype.element_ty), mask=size < SIZE)
