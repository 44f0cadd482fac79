"""Attention of scattered rows of several sequences in Triton: the GPU's path.

    out[h, i] = softmax_j(scaling q[h, i] . k[h / G, j]) v[h / G, j],   j <= slot(i)

over the keys of row i's own sequence. A program takes one key head, a block of a sequence's rows
of all the G query heads that share it, and a part of the keys. From the first and last slot of its
rows it knows which blocks of keys no row sees, which are skipped, and which all rows see, where
nothing is masked. With few rows (decode, the suffix of a prompt) the keys are split among programs,
whose parts are combined at the end.

shapes    queries, out [Hq, R, D]; table int64 [sequences, 7]; programs int64 [P, 2]
          slots, first_seen int64 [R]
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
from fusionrag_integrations.attention.online_softmax import LOG2_E, add_keys, finish
from fusionrag_integrations.attention.sequences import ALIGNED, SequenceRows
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.errors import InvalidInputError

HEAD_SIZES = (32, 64, 96, 128, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit(do_not_specialize=["layer"])
def attend_kernel(
    queries,
    table,
    programs,
    slots,
    first_seen,
    first_parts,
    out,
    parts,
    maxima,
    totals,
    sinks,
    layer,
    group,
    scaling,
    softcap,
    query_head,
    query_row,
    out_head,
    out_row,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    COLUMNS: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    WINDOWED: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDE: tl.constexpr,
):
    """WIDE: multiply in float32 (the interpreter can't in bf16)."""
    program = programs + tl.program_id(0) * 2
    kv_head = tl.program_id(1)
    entry = table + tl.load(program) * COLUMNS
    flat = tl.load(program + 1).to(tl.int32) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = flat // group < tl.load(entry + 1)
    row = tl.load(entry).to(tl.int32) + flat // group
    head = kv_head * group + flat % group
    slot = tl.load(slots + row, mask=real, other=-1).to(tl.int32)
    last = tl.max(slot)
    first = tl.min(tl.where(real, slot, last))

    size = tl.arange(0, PADDED)
    inside = size < SIZE
    at = queries + head[:, None] * query_head + row[:, None] * query_row + size[None, :]
    query = tl.load(at, mask=real[:, None] & inside[None, :], other=0.0)
    if WIDE:
        query = query.to(tl.float32)

    low = slot
    begin = 0
    if WINDOWED:
        low = tl.load(first_seen + row, mask=real, other=0).to(tl.int32)
        begin = tl.min(tl.where(real, low, last)) // BLOCK_N * BLOCK_N
    end = last + 1
    part = tl.load(first_parts + row, mask=real, other=0)
    if SPLIT:
        each = tl.cdiv(tl.cdiv(end - begin, tl.num_programs(2)), BLOCK_N) * BLOCK_N
        begin += tl.program_id(2) * each
        end = tl.minimum(end, begin + each)
        part += tl.program_id(2)
    clear = begin  # up to here every row sees every key
    if not WINDOWED:
        clear = tl.maximum(begin, tl.minimum(end, first + 1) // BLOCK_N * BLOCK_N)

    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, PADDED], tl.float32)
    if SINKS:  # a key without a value, of the first part
        sink = tl.load(sinks + head, mask=real, other=float("-inf"))
        highest = tl.where(tl.program_id(2) == 0, sink, float("-inf"))
        total = tl.where(highest > float("-inf"), 1.0, 0.0)
    there = layer * tl.load(entry + 4) + kv_head * tl.load(entry + 5)
    keys = tl.load(entry + 2).to(tl.pointer_type(queries.dtype.element_ty)) + there
    values = tl.load(entry + 3).to(tl.pointer_type(queries.dtype.element_ty)) + there
    keys = tl.multiple_of(keys, 16)  # bytes, as `ALIGNED`
    values = tl.multiple_of(values, 16)
    highest, total, sums = add_keys(
        query,
        slot,
        low,
        keys + size[:, None],
        values + size[None, :],
        slots,  # nothing is stale
        begin,
        clear,
        end,
        highest,
        total,
        sums,
        inside,
        SIZE,  # slots are contiguous
        SIZE,
        scaling,
        softcap,
        BLOCK_N=BLOCK_N,
        CAPPED=CAPPED,
        WINDOWED=WINDOWED,
        STALE=False,
        WIDE=WIDE,
    )
    finish(
        highest,
        total,
        sums,
        head,
        row,
        real,
        tl.num_programs(1) * group,
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
    layer: int,
    queries: torch.Tensor,
    rows: SequenceRows,
    spec: AttentionSpec,
    launch: Launch | None = None,
) -> torch.Tensor:
    """See `attend_rows`. The last dimension of queries must be contiguous.

    Raises `InvalidInputError` for shapes, dtypes and devices that the kernel can't take.
    """
    check(queries, rows)
    launch = launch or _launch(queries, rows)
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    first_parts = rows.first_parts(launch.splits)
    scratch = Scratch.of(launch.splits * len(rows) if launch.splits > 1 else 0, queries)
    attend_in_parts(layer, queries, rows, spec, launch, first_parts, scratch, out)
    if launch.splits > 1:
        scratch.combine_into(out, first_parts)
    return out


def attend_in_parts(
    layer: int,
    queries: torch.Tensor,
    rows: SequenceRows,
    spec: AttentionSpec,
    launch: Launch,
    first_parts: torch.Tensor,
    scratch: Scratch,
    out: torch.Tensor,
) -> None:
    """Launch the kernel: into `out`, or where there is room in `scratch`, as the first parts of
    each row, `launch.splits` of them.
    """
    size, group = queries.shape[2], queries.shape[0] // rows.kv_heads
    programs = rows.programs(launch.block_m, group)
    attend_kernel[(len(programs), rows.kv_heads, launch.splits)](
        *(queries, rows.table, programs, rows.slots),
        rows.slots if spec.window is None else rows.first_seen(spec.window),
        *(first_parts, out, scratch.parts, scratch.maxima, scratch.totals),
        scratch.maxima if spec.sinks is None else spec.sinks.float() * LOG2_E,
        *(layer, group, spec.scaling * LOG2_E, (spec.softcap or 0.0) * LOG2_E),
        *(*queries.stride()[:2], *out.stride()[:2]),
        SIZE=size,
        PADDED=triton.next_power_of_2(size),
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        COLUMNS=rows.table.shape[1],
        CAPPED=spec.softcap is not None,
        SINKS=spec.sinks is not None,
        WINDOWED=spec.window is not None,
        SPLIT=len(scratch.parts) > 0,
        WIDE=queries.device.type == "cpu",
        num_warps=launch.warps,
        num_stages=launch.stages,
    )


def _launch(queries: torch.Tensor, rows: SequenceRows) -> Launch:
    sequences = len(rows.rows)
    return launch_for(
        queries.shape[0],
        rows.kv_heads,
        triton.cdiv(len(rows), sequences),
        rows.longest,
        head_bytes(queries),
        multiprocessors(queries.device),
        sequences,
    )


def check(queries: torch.Tensor, rows: SequenceRows) -> None:
    """Raises `InvalidInputError` for what the kernel can't take."""
    keys = rows.rooms[0].keys
    if not (
        queries.dim() == 3
        and queries.shape[1] == len(rows)
        and queries.shape[2] == keys.shape[3]
        and queries.shape[0] % keys.shape[1] == 0
        and queries.numel() > 0
    ):
        raise InvalidInputError(
            "Attention takes queries [Hq, R, D] of all rows, and keys and values [L, Hkv, N, D], "
            f"with Hq a multiple of Hkv; got {tuple(queries.shape)} for {len(rows)} rows, "
            f"{tuple(keys.shape)}."
        )
    if queries.shape[2] not in HEAD_SIZES:
        raise InvalidInputError(
            f"Heads of size {queries.shape[2]} are not supported; {HEAD_SIZES} are."
        )
    if queries.dtype not in DTYPES or keys.dtype != queries.dtype:
        raise InvalidInputError(
            f"Queries are {queries.dtype}, keys and values {keys.dtype}; all must be the same of "
            f"{', '.join(map(str, DTYPES))}."
        )
    if queries.device != keys.device:
        raise InvalidInputError(
            f"Queries are on {queries.device}, keys and values on {keys.device}; give one device."
        )
    if queries.stride(2) != 1:
        raise InvalidInputError("The last dimension of queries isn't contiguous.")
    if not rows.aligned:
        raise InvalidInputError(
            "Keys and values of a sequence need the same strides, slots one right behind the "
            f"other, and to begin at a multiple of {ALIGNED} bytes. Give copies."
        )
