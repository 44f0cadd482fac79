"""Attention of scattered rows in Triton: the GPU's path.

    out[h, i] = softmax_j(scaling q[h, i] . k[h / G, j]) v[h / G, j],   j <= position(i)

A program takes one key head, a block of rows of all the G query heads that share it, and a part of
the keys. Softmax is online, in float32 and base 2. From the first and last position of its rows a
program knows which blocks of keys no row sees, which are skipped, and which all rows see, where
nothing is masked. With few rows (decode, the suffix of a prompt) the keys are split among programs,
whose partial results `_combine` puts together.

shapes    queries, out [Hq, R, D]; keys, values [Hkv, N, D]; positions int64 [R]
parts     partial outputs float32 [S, Hq, R, D]; maxima and sums float32 [S, Hq, R]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from fusionrag_integrations.errors import InvalidInputError

HEAD_SIZES = (32, 64, 96, 128, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_SPLITS = 64
LOG2_E = 1.4426950408889634


@triton.jit
def _add_block(
    query,
    position,
    keys,
    values,
    start,
    end,
    highest,
    total,
    sum_of_values,
    inside,
    key_row,
    value_row,
    scaling,
    window,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One block of keys into the online softmax; MASKED: not every row sees every key of it."""
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
        seen = (place[None, :] <= position[:, None]) & there[None, :]
        if WINDOWED:
            seen = seen & (place[None, :] > position[:, None] - window)
        score = tl.where(seen, score, float("-inf"))
    higher = tl.maximum(highest, tl.max(score, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # of a row that saw nothing yet
    power = tl.exp2(score - base[:, None])
    fade = tl.exp2(highest - base)
    total = total * fade + tl.sum(power, 1)
    sum_of_values = sum_of_values * fade[:, None]
    sum_of_values = tl.dot(power.to(value.dtype), value, sum_of_values, input_precision="ieee")
    return higher, total, sum_of_values


@triton.jit
def _attend(
    queries,
    keys,
    values,
    positions,
    out,
    parts,
    maxima,
    sums,
    rows,
    group,
    scaling,
    window,
    split_keys,
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
    flat = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = flat // group
    head = kv_head * group + flat % group
    real = row < rows
    position = tl.load(positions + row, mask=real, other=-1).to(tl.int32)
    last = tl.max(position)
    first = tl.min(tl.where(real, position, last))

    size = tl.arange(0, PADDED)
    inside = size < SIZE
    at = queries + head[:, None] * query_head + row[:, None] * query_row + size[None, :]
    query = tl.load(at, mask=real[:, None] & inside[None, :], other=0.0)
    if WIDE:
        query = query.to(tl.float32)

    begin = 0
    if WINDOWED:
        begin = tl.maximum(0, first - window + 1) // BLOCK_N * BLOCK_N
    end = last + 1
    if SPLIT:
        begin = tl.maximum(begin, part * split_keys)
        end = tl.minimum(end, (part + 1) * split_keys)
    clear = begin  # up to here every row sees every key
    if not WINDOWED:
        clear = tl.maximum(begin, tl.minimum(end, first + 1) // BLOCK_N * BLOCK_N)

    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sum_of_values = tl.zeros([BLOCK_M, PADDED], tl.float32)
    keys += kv_head * key_head + size[:, None]
    values += kv_head * value_head + size[None, :]
    for start in range(begin, clear, BLOCK_N):
        highest, total, sum_of_values = _add_block(
            query,
            position,
            keys,
            values,
            start,
            end,
            highest,
            total,
            sum_of_values,
            inside,
            key_row,
            value_row,
            scaling,
            window,
            BLOCK_N=BLOCK_N,
            MASKED=False,
            WINDOWED=WINDOWED,
            WIDE=WIDE,
        )
    for start in range(clear, end, BLOCK_N):
        highest, total, sum_of_values = _add_block(
            query,
            position,
            keys,
            values,
            start,
            end,
            highest,
            total,
            sum_of_values,
            inside,
            key_row,
            value_row,
            scaling,
            window,
            BLOCK_N=BLOCK_N,
            MASKED=True,
            WINDOWED=WINDOWED,
            WIDE=WIDE,
        )

    if SPLIT:
        heads = tl.num_programs(1) * group
        place = (part * heads + head) * rows + row
        tl.store(maxima + place, highest, mask=real)
        tl.store(sums + place, total, mask=real)
        at = parts + place[:, None] * SIZE + size[None, :]
        tl.store(at, sum_of_values, mask=real[:, None] & inside[None, :])
    else:
        result = sum_of_values / tl.where(real, total, 1.0)[:, None]
        at = out + head[:, None] * out_head + row[:, None] * out_row + size[None, :]
        tl.store(at, result.to(out.dtype.element_ty), mask=real[:, None] & inside[None, :])


@triton.jit
def _combine(
    parts,
    maxima,
    sums,
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
    total = tl.sum(weight * tl.load(sums + place, mask=real, other=0.0))
    at = parts + place[:, None] * SIZE + size[None, :]
    partial = tl.load(at, mask=real[:, None] & (size < SIZE)[None, :], other=0.0)
    result = tl.sum(weight[:, None] * partial, 0) / total
    at = out + head * out_head + row * out_row + size
    tl.store(at, result.to(out.dtype.element_ty), mask=size < SIZE)


@dataclass(frozen=True, slots=True)
class Launch:
    """How the work is laid out. block_m: rows times the heads that share keys; splits: of the keys.

    Not tuned on a GPU yet.
    """

    block_m: int
    block_n: int
    splits: int
    warps: int
    stages: int


def launch_for(heads: int, kv_heads: int, rows: int, keys: int, size: int, programs: int) -> Launch:
    """A layout with at least about `programs` programs, if there are keys enough to split."""
    flat = rows * heads // kv_heads
    block_m = 16 if flat <= 16 else 64 if flat <= 64 or size > 128 else 128
    block_n = 64 if size <= 128 else 32
    blocks = triton.cdiv(flat, block_m) * kv_heads
    wanted = programs // blocks
    splits = max(1, min(wanted, triton.cdiv(keys, 4 * block_n), MOST_SPLITS))
    return Launch(block_m, block_n, splits, warps=8 if block_m == 128 else 4, stages=2)


def triton_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scaling: float,
    window: int | None = None,
    launch: Launch | None = None,
) -> torch.Tensor:
    """See `attend`. positions: int64 [R], on the queries' device; ascending ones skip most keys.

    The last dimension of queries, keys and values must be contiguous. Raises `InvalidInputError`
    for shapes, dtypes and devices that the kernel can't take.
    """
    _check(queries, keys, values, positions)
    heads, rows, size = queries.shape
    kv_heads, count, _ = keys.shape
    if launch is None:
        launch = launch_for(heads, kv_heads, rows, count, size, _programs(queries.device))
    split_keys = triton.cdiv(triton.cdiv(count, launch.splits), launch.block_n) * launch.block_n
    splits = triton.cdiv(count, split_keys)
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    wide: dict[str, Any] = {"dtype": torch.float32, "device": queries.device}
    scratch = (splits, heads, rows) if splits > 1 else (0,)
    parts = torch.empty((*scratch, size) if splits > 1 else (0,), **wide)
    maxima, sums = torch.empty(scratch, **wide), torch.empty(scratch, **wide)
    padded = triton.next_power_of_2(size)
    group = heads // kv_heads
    _attend[(triton.cdiv(rows * group, launch.block_m), kv_heads, splits)](
        *(queries, keys, values, positions, out, parts, maxima, sums),
        *(rows, group, scaling * LOG2_E, window or 0, split_keys),
        *(stride for tensor in (queries, keys, values, out) for stride in tensor.stride()[:2]),
        SIZE=size,
        PADDED=padded,
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        WINDOWED=window is not None,
        SPLIT=splits > 1,
        WIDE=queries.device.type == "cpu",
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    if splits > 1:
        _combine[(rows, heads)](
            *(parts, maxima, sums, out, splits, rows, heads, *out.stride()[:2]),
            SIZE=size,
            PADDED=padded,
            SPLITS=triton.next_power_of_2(splits),
        )
    return out


def _programs(device: torch.device) -> int:
    """Programs that run at a time, two a multiprocessor."""
    if device.type != "cuda":
        return 1
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def _check(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor
) -> None:
    given = [queries, keys, values]
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (*given, positions))
    if not (
        all(tensor.dim() == 3 for tensor in given)
        and keys.shape == values.shape
        and queries.shape[2] == keys.shape[2]
        and queries.shape[0] % keys.shape[0] == 0
        and positions.shape == queries.shape[1:2]
        and queries.numel() > 0
        and keys.numel() > 0
    ):
        raise InvalidInputError(
            "Attention takes queries [Hq, R, D], keys and values [Hkv, N, D], and positions [R], "
            f"with Hq a multiple of Hkv; got {shapes}."
        )
    if queries.shape[2] not in HEAD_SIZES:
        raise InvalidInputError(
            f"Heads of size {queries.shape[2]} are not supported; {HEAD_SIZES} are."
        )
    if queries.dtype not in DTYPES or {tensor.dtype for tensor in given} != {queries.dtype}:
        raise InvalidInputError(
            f"Queries, keys and values are {', '.join(str(t.dtype) for t in given)}; all must be "
            f"the same of {', '.join(map(str, DTYPES))}."
        )
    if positions.dtype != torch.int64:
        raise InvalidInputError(f"Positions are {positions.dtype}; give int64.")
    if len({tensor.device for tensor in (*given, positions)}) > 1:
        raise InvalidInputError("Queries, keys, values and positions must be on one device.")
    if any(tensor.stride(2) != 1 for tensor in given):
        raise InvalidInputError("The last dimension of queries, keys and values isn't contiguous.")
