"""Attention to chunks in place, in Triton: the second mode of `sparse_attention`.

A program takes one key head, a few rows of one or several sequences with all the query heads that
share it, and some runs of chunks that all of these rows read: a chunk is read once for all
requests, as a shared prefix is in Hydragen (arXiv 2402.05099) and FlashInfer (arXiv 2501.01005),
but at another place in each of them. It rotates its queries once a run, each by its own sequence's
rotation, which costs less than rotating the run's keys, and copies none of them. Private tokens and
sinks are `sparse_attention`'s; all parts are combined at the end.

shapes    queries, out [Hq, R, D]; work, users, chunks, uses: see `shared_runs`; other int32 [D]
          positions int64 [R]
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

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
from fusionrag_integrations.attention.segments import PrivateRows
from fusionrag_integrations.attention.sequences import ALIGNED, rounded
from fusionrag_integrations.attention.shared_runs import SharedWork, shared_work
from fusionrag_integrations.attention.sparse_attention import attend_in_parts, check
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.errors import InvalidInputError

MOST_FLAT = 64  # rows times the heads that share keys: rotating them takes room for three more


@triton.jit(do_not_specialize=["layer"])
def attend_in_place_kernel(
    queries,
    work,
    users,
    chunks,
    uses,
    other,
    positions,
    out,
    parts,
    maxima,
    totals,
    layer,
    group,
    scaling,
    softcap,
    window,
    query_head,
    query_row,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """WIDE: multiply in float32 (the interpreter can't in bf16)."""
    entry = work + tl.program_id(0) * 5
    kv_head = tl.program_id(1)
    count = tl.load(entry + 1)
    flat = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    user = flat // group
    real = user < count
    head = kv_head * group + flat % group
    of_user = users + (tl.load(entry) + user) * 2
    row = tl.load(of_user, mask=real, other=0).to(tl.int32)
    part = tl.load(of_user + 1, mask=real, other=0)
    position = tl.load(positions + row, mask=real, other=0)

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
    chunk = chunks + tl.load(entry + 2) * 5
    use = uses + (tl.load(entry + 4) + user) * 5
    for _ in range(0, tl.load(entry + 3).to(tl.int32)):
        start = tl.load(use, mask=real, other=0)
        upto = tl.where(real, position - start, -1).to(tl.int32)
        last = tl.max(upto)
        first = tl.min(tl.where(real, upto, last))
        low = upto - window + 1
        end = tl.minimum(tl.load(chunk + 2).to(tl.int32), last + 1)
        begin = 0
        if WINDOWED:
            begin = tl.maximum(0, tl.min(tl.where(real, low, last))) // BLOCK_N * BLOCK_N
        if begin < end:
            clear = begin  # up to here every row sees every key, but for the stale ones
            if not WINDOWED:
                clear = tl.maximum(0, tl.minimum(end, first + 1)) // BLOCK_N * BLOCK_N
            # The inverse rotation to the run's place: a sine of the other sign.
            turn = layer * tl.load(use + 3, mask=real, other=0)
            cosines = tl.load(use + 1, mask=real, other=0).to(tl.pointer_type(tl.float32)) + turn
            sines = tl.load(use + 2, mask=real, other=0).to(tl.pointer_type(tl.float32)) + turn
            cosine = tl.load(cosines[:, None] + size[None, :], mask=used, other=0.0)
            sine = tl.load(sines[:, None] + size[None, :], mask=used, other=0.0)
            rotated = query.to(tl.float32) * cosine - paired.to(tl.float32) * sine
            rotated = rotated.to(queries.dtype.element_ty)
            if WIDE:
                rotated = rotated.to(tl.float32)
            there = layer * tl.load(chunk + 4) + kv_head * tl.load(chunk + 3)
            keys = tl.load(chunk).to(tl.pointer_type(queries.dtype.element_ty)) + there
            values = tl.load(chunk + 1).to(tl.pointer_type(queries.dtype.element_ty)) + there
            keys = tl.multiple_of(keys, 16)  # bytes, as `ALIGNED`
            values = tl.multiple_of(values, 16)
            stale = tl.load(use + 4, mask=real, other=0).to(tl.pointer_type(tl.uint8))
            highest, total, sums = add_keys(
                rotated,
                upto,
                low,
                keys + size[:, None],
                values + size[None, :],
                stale,
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
                softcap,
                BLOCK_N=BLOCK_N,
                CAPPED=CAPPED,
                WINDOWED=WINDOWED,
                STALE=True,
                WIDE=WIDE,
            )
        chunk += 5
        use += count * 5
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
        0,  # no program has all of a row
        0,
        size,
        inside,
        SIZE=SIZE,
        SPLIT=True,
    )


class SegmentAttention:
    """Rows of a pass over chunks in place. What programs take is worked out once a pass."""

    def __init__(self, rows: PrivateRows, launch: Launch | None = None) -> None:
        """launch: for both kernels, instead of those that fit the rows. Its splits are those of
        private tokens, and the programs that are wanted of chunks.

        Raises `InvalidInputError` for chunks that can't be read in place.
        """
        _check(rows)
        self._rows = rows
        self._launch = launch
        self._made: Plan | None = None

    def attend(self, layer: int, queries: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
        """See `InPlaceAttention`. Raises `InvalidInputError` as `triton_attention` does."""
        check(queries, self._rows)
        plan = self.plan(queries.shape[0])
        out = torch.empty_like(queries, memory_format=torch.contiguous_format)
        scratch = Scratch.of(plan.work.parts, queries)
        self._read_chunks(layer, queries, spec, plan, scratch, out)
        attend_in_parts(
            *(layer, queries, self._rows, spec, plan.private),
            *(plan.work.first_parts, scratch, out),
        )
        scratch.combine_into(out, plan.work.first_parts)
        return out

    def _read_chunks(
        self,
        layer: int,
        queries: torch.Tensor,
        spec: AttentionSpec,
        plan: Plan,
        scratch: Scratch,
        out: torch.Tensor,
    ) -> None:
        work, launch, size = plan.work, plan.chunks, queries.shape[2]
        kv_heads, group = self._rows.kv_heads, queries.shape[0] // self._rows.kv_heads
        blocks = triton.cdiv(plan.most_users * group, launch.block_m)
        attend_in_place_kernel[(len(work.work), kv_heads, blocks)](
            *(queries, work.work, work.users, work.chunks, work.uses),
            *(self._rows.sequences[0].segments.rotations.other, self._rows.positions),
            *(out, scratch.parts, scratch.maxima, scratch.totals),
            *(layer, group, spec.scaling * LOG2_E, (spec.softcap or 0.0) * LOG2_E),
            *(spec.window or 0, *queries.stride()[:2]),
            SIZE=size,
            PADDED=triton.next_power_of_2(size),
            BLOCK_M=launch.block_m,
            BLOCK_N=launch.block_n,
            CAPPED=spec.softcap is not None,
            WINDOWED=spec.window is not None,
            WIDE=queries.device.type == "cpu",
            num_warps=launch.warps,
            num_stages=launch.stages,
        )

    def plan(self, heads: int) -> Plan:
        """Made for the first layer: all have the same shapes."""
        if self._made is None:
            self._made = Plan.of(self._rows, heads, self._launch)
        return self._made

    def take(self, plan: Plan) -> None:
        """Go by another plan of the same size from now on, in tensors that stay where they are.

        The first to be taken is padded to its size, and stays.
        """
        if self._made is None or self._made.work.size != plan.size:
            self._made = replace(plan, work=plan.work.padded(*plan.size))
        else:
            self._made.work.take(plan.work)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How the kernels are laid out, and what programs take. most_users: of a program."""

    private: Launch
    chunks: Launch
    most_users: int
    work: SharedWork

    @classmethod
    def of(cls, rows: PrivateRows, heads: int, launch: Launch | None = None) -> Plan:
        """heads: of queries. launch: see `SegmentAttention`."""
        kept, sequences = rows.rooms[0].keys, len(rows.rows)
        device = head_bytes(kept), multiprocessors(kept.device)
        shape = heads, rows.kv_heads
        of_chunk = max(1, min(len(rows), MOST_FLAT * rows.kv_heads // heads))
        stop = rounded(max(sequence.segments.stop for sequence in rows.sequences))
        private = launch or launch_for(*shape, 1, rows.longest, *device, sequences)
        chunks = launch or launch_for(*shape, of_chunk, stop, *device)
        most = max(1, chunks.block_m * rows.kv_heads // heads)
        work = shared_work(rows, most, chunks.splits, private.splits)
        return cls(private, chunks, most, work)

    @property
    def layout(self) -> tuple[Hashable, ...]:
        """What a recorded launch can't change: plans of the same can take each other's place."""
        return self.private, self.chunks, self.size

    @property
    def size(self) -> tuple[int, int]:
        """Work and uses, rounded up so that few sizes come up."""
        work, uses = self.work.size
        return rounded(work), rounded(uses)


def _check(rows: PrivateRows) -> None:
    room = rows.rooms[0].keys
    for sequence in rows.sequences:
        chunk = sequence.segments.segments[0].keys
        if chunk.dtype != room.dtype or chunk.shape[1::2] != room.shape[1::2]:
            raise InvalidInputError(
                f"Chunks have KV in {chunk.dtype} {tuple(chunk.shape)}; private tokens in "
                f"{room.dtype} {tuple(room.shape)}."
            )
        if not sequence.segments.aligned:
            raise InvalidInputError(
                "Chunks that are read in place must begin at a multiple of "
                f"{ALIGNED} bytes; some are parts of larger tensors. Give copies."
            )
