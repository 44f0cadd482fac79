"""Attention of scattered rows in Triton: the GPU's path.

    out[h, i] = softmax_j(scaling q[h, i] . k[h / G, j]) v[h / G, j],   j <= position(i)

A program takes one key head, a block of rows of all the G query heads that share it, and a part of
the keys. From the first and last position of its rows it knows which blocks of keys no row sees,
which are skipped, and which all rows see, where nothing is masked. With few rows (decode, the
suffix of a prompt) the keys are split among programs, whose parts are combined at the end.

shapes    queries, out [Hq, R, D]; keys, values [Hkv, N, D]; positions int64 [R]
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

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
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.errors import InvalidInputError

HEAD_SIZES = (32, 64, 96, 128, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit
def attend_kernel(
    queries,
    keys,
    values,
    positions,
    out,
    parts,
    maxima,
    totals,
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
    row, head, real, position, first, last = rows_of_program(
        positions, rows, group, kv_head, BLOCK_M=BLOCK_M
    )

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
    sums = tl.zeros([BLOCK_M, PADDED], tl.float32)
    keys += kv_head * key_head + size[:, None]
    values += kv_head * value_head + size[None, :]
    highest, total, sums = add_keys(
        query,
        position,
        position - window + 1,
        keys,
        values,
        positions,  # nothing is stale
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


def triton_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    spec: AttentionSpec,
    launch: Launch | None = None,
) -> torch.Tensor:
    """See `attend`. positions: int64 [R], on the queries' device; ascending ones skip most keys.

    The last dimension of queries, keys and values must be contiguous. Raises `InvalidInputError`
    for shapes, dtypes and devices that the kernel can't take.
    """
    check(queries, keys, values, positions)
    heads, rows, size = queries.shape
    kv_heads, count, _ = keys.shape
    if launch is None:
        many = multiprocessors(queries.device)
        launch = launch_for(heads, kv_heads, rows, count, head_bytes(queries), many)
    split_keys = triton.cdiv(triton.cdiv(count, launch.splits), launch.block_n) * launch.block_n
    splits = triton.cdiv(count, split_keys)
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    scratch = Scratch.of(splits, queries)
    group = heads // kv_heads
    attend_kernel[(triton.cdiv(rows * group, launch.block_m), kv_heads, splits)](
        *(queries, keys, values, positions, out, scratch.parts, scratch.maxima, scratch.totals),
        *(rows, group, spec.scaling * LOG2_E, spec.window or 0, split_keys),
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


def check(
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
