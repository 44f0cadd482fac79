"""The attention kernel beside what else could do its work, on one layer's shape.

sparse   ours: rows at scattered positions over all keys
in_place ours, over chunks that lie here and there, the rows' own tokens apart; on CUDA only
masked   PyTorch's attention with a mask, over repeated key heads, as transformers does it
flex     PyTorch's FlexAttention with the same rule as a block mask; on CUDA only
dense    PyTorch's causal attention of a row a key: what recomputing everything costs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from fusionrag_integrations.attention.attend import attend, attention_in_place
from fusionrag_integrations.attention.rope import RotaryTable
from fusionrag_integrations.attention.rows import Rows, visible
from fusionrag_integrations.attention.segments import (
    PrivateRows,
    Segment,
    Segments,
    SharedSequence,
)
from fusionrag_integrations.attention.sequences import Room
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.bench.clock import kernel_ms, times_ms
from fusionrag_integrations.bench.machine import where_and_when

LARGEST_MASK = 1 << 31  # elements; a larger one is not made
SUFFIX = 64  # rows at the end that are always computed
CHUNK = 256  # tokens
COPIED_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Work:
    """Operations (a product and a sum are two), and bytes read and written once each."""

    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class KernelRow:
    """Milliseconds, by medians; None where it could not be run. error: from masked, at most.

    work, dense_work: what ours and dense attention can't do without.
    """

    keys: int
    ratio: float
    rows: int
    work: Work
    dense_work: Work
    sparse_ms: float
    in_place_ms: float | None
    masked_ms: float | None
    flex_ms: float | None
    dense_ms: float
    error: float | None


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Of one layer's attention."""

    heads: int
    kv_heads: int
    size: int


def measure_kernel(
    shape: HeadShape,
    keys: Sequence[int],
    ratios: Sequence[float],
    dtype: torch.dtype,
    device: torch.device,
    repeat: int,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Every number of keys with every share of rows, at random positions and the last ones.

    A ratio of 0 is one row, the last: a step of decode. repeat: see `kernel_ms`.
    """
    rows = []
    for count in keys:
        k, v = (_random(shape.kv_heads, count, shape.size, dtype, device) for _ in range(2))
        dense = _dense(shape, k, v, repeat)
        for number, ratio in enumerate(ratios):
            progress(f"{count:,}", number, len(ratios))
            rows.append(_row(shape, k, v, ratio, dense, repeat))
        progress(f"{count:,}", len(ratios), len(ratios))
    return where_and_when() | {
        **asdict(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "repeat": repeat,
        "peak_flops": _peak_flops(dtype, device),
        "peak_bytes": _peak_bytes(device),
        "rows": [asdict(row) for row in rows],
    }


def _row(
    shape: HeadShape,
    keys: torch.Tensor,
    values: torch.Tensor,
    ratio: float,
    dense_ms: float,
    repeat: int,
) -> KernelRow:
    device, count = keys.device, keys.shape[1]
    rows = Rows.at(_positions(count, ratio), device)
    queries = _random(shape.heads, len(rows), shape.size, keys.dtype, device)
    spec = AttentionSpec(shape.size**-0.5)

    def sparse() -> torch.Tensor:
        return attend(queries, keys, values, rows, spec)

    masked_ms = error = None
    if len(rows) * count <= LARGEST_MASK:
        mask = visible(rows.on_device, count, None)
        group = shape.heads // shape.kv_heads

        def masked() -> torch.Tensor:
            k, v = (kv.repeat_interleave(group, dim=0)[None] for kv in (keys, values))
            return scaled_dot_product_attention(queries[None], k, v, attn_mask=mask)[0]

        masked_ms = kernel_ms(masked, repeat, device)
        error = float((sparse().float() - masked().float()).abs().max())
    return KernelRow(
        keys=count,
        ratio=ratio,
        rows=len(rows),
        work=_work(shape, rows.positions, count, keys.element_size()),
        dense_work=_work(shape, range(count), count, keys.element_size()),
        sparse_ms=kernel_ms(sparse, repeat, device),
        in_place_ms=in_place_ms(queries, keys, values, rows, repeat)
        if device.type == "cuda"
        else None,
        masked_ms=masked_ms,
        flex_ms=_flex(queries, keys, values, rows, repeat)
        if device.type == "cuda" and masked_ms is not None  # its block mask begins as a mask
        else None,
        dense_ms=dense_ms,
        error=error,
    )


def _work(shape: HeadShape, positions: Sequence[int], keys: int, item: int) -> Work:
    pairs = sum(positions) + len(positions)
    moved = 2 * shape.heads * len(positions) + 2 * shape.kv_heads * keys
    return Work(4.0 * shape.heads * shape.size * pairs, float(moved * shape.size * item))


def _peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Of a large product of matrices, in operations a second."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2.0 * size**3 / (min(times_ms(lambda: a @ b, 5, device)) / 1e3)


def _peak_bytes(device: torch.device) -> float:
    """Of copying within the device, read and written, in bytes a second."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * COPIED_BYTES / (min(times_ms(lambda: target.copy_(source), 5, device)) / 1e3)


def in_place_ms(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: Rows, repeat: int
) -> float:
    """The same keys as chunks of `CHUNK` tokens, rotated by any angle: the result isn't used."""
    count, device = keys.shape[1], keys.device
    segments = [
        Segment(
            keys[None, :, start : start + CHUNK].contiguous(),
            values[None, :, start : start + CHUNK].contiguous(),
            source_start=0,
            start=start,
            length=min(CHUNK, count - start),
        )
        for start in range(0, count, CHUNK)
    ]
    size = keys.shape[2]
    angles = torch.rand((1, len(segments), size), device=device)
    other = torch.arange(size, device=device, dtype=torch.int32).roll(size // 2)
    table = Segments(segments, RotaryTable(angles.cos(), angles.sin(), other))
    own = torch.tensor(rows.positions)
    private = Room(keys[None][:, :, rows.on_device], values[None][:, :, rows.on_device])
    in_place = attention_in_place(PrivateRows([rows], [SharedSequence(table, private, own)]))
    spec = AttentionSpec(size**-0.5)

    def attended() -> torch.Tensor:
        return in_place.attend(0, queries, spec)

    return kernel_ms(attended, repeat, device)


def _positions(keys: int, ratio: float) -> list[int]:
    """A share of all positions, ascending: random ones, and the last `SUFFIX`."""
    if not ratio:
        return [keys - 1]
    draw = torch.Generator().manual_seed(keys)
    last = min(SUFFIX, keys)
    wanted = max(last, int(ratio * keys))
    chosen = torch.randperm(keys - last, generator=draw)[: wanted - last]
    return [*sorted(chosen.tolist()), *range(keys - last, keys)]


def _dense(shape: HeadShape, keys: torch.Tensor, values: torch.Tensor, repeat: int) -> float:
    queries = _random(shape.heads, keys.shape[1], shape.size, keys.dtype, keys.device)

    def dense() -> torch.Tensor:
        return scaled_dot_product_attention(
            queries[None], keys[None], values[None], is_causal=True, enable_gqa=True
        )

    return kernel_ms(dense, repeat, keys.device)


def _flex(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: Rows, repeat: int
) -> float:
    positions = rows.on_device

    def seen(batch: Any, head: Any, row: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return key <= positions[row]

    block_mask = create_block_mask(
        seen, None, None, len(rows), keys.shape[1], device=str(keys.device)
    )
    torch.compiler.reset()  # for this shape anew, however many there were: there is a limit
    compiled = torch.compile(flex_attention, dynamic=False)

    def flex() -> Any:
        given = (queries[None], keys[None], values[None])
        return compiled(*given, block_mask=block_mask, enable_gqa=True)

    return kernel_ms(flex, repeat, keys.device)


def _random(
    heads: int, tokens: int, size: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    return torch.randn(heads, tokens, size, dtype=dtype, device=device)
