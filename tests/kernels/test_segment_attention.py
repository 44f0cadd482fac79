"""Chunks in place, in Triton, against a copy of everything in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from fusionrag_integrations.attention.attend import by_position
from fusionrag_integrations.attention.reference import reference_attention
from fusionrag_integrations.attention.rope import RotaryTable
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.attention.segments import PrivateRows, Segment, Segments
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.errors import InvalidInputError

pytest.importorskip("triton")

from fusionrag_integrations.attention import online_softmax
from fusionrag_integrations.attention import segment_attention as kernel
from fusionrag_integrations.attention.launch import Launch
from tests.kernels.lines import Lines

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Queries are turned and rounded again, which costs as much as rounding the keys did.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}
LAYERS = 2


@dataclass(frozen=True)
class Case:
    """Queries [Hq, R, D], own keys and values [Hkv, M, D], rows, segments."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    rows: PrivateRows
    segments: Segments


def made(
    heads: int,
    kv_heads: int,
    size: int,
    dtype: torch.dtype = torch.float32,
    lengths: tuple[int, ...] = (19, 8, 21),
    every: int = 5,
    last_only: bool = False,
) -> Case:
    """Segments of some of the tokens of chunks, two tokens between them, six behind them.

    Every so many of a segment's tokens are the sequence's own, and all that are in none.
    """
    draw = torch.Generator().manual_seed(heads + size + every)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(DEVICE, dtype)

    segments, own, at = [], [], 3
    own += range(at)
    for number, length in enumerate(lengths):
        cut = number % 3  # the first tokens of some chunks aren't used
        chunk = (LAYERS, kv_heads, length + cut + number, size)
        segments.append(Segment(random(*chunk), random(*chunk), cut, at, length))
        own += range(at + number, at + length, every)
        own += range(at + length, at + length + 2)
        at += length + 2
    own += range(at, at + 6)
    # A dimension is turned with the one half the size away, by one angle.
    other = torch.arange(size, device=DEVICE, dtype=torch.int32).roll(size // 2)
    angles = torch.rand(1, len(lengths), size // 2, generator=draw).to(DEVICE) * 6.0
    signs = torch.cat((-torch.ones(size // 2), torch.ones(size // 2))).to(DEVICE)
    rotations = RotaryTable(
        angles.cos().repeat(1, 1, 2), angles.sin().repeat(1, 1, 2) * signs, other
    )
    table = Segments(segments, rotations)
    owned = torch.tensor(own, device=DEVICE)
    stale = torch.zeros(table.stop, dtype=torch.uint8, device=DEVICE)
    stale[owned[owned < table.stop]] = 1
    positions = owned[-1:] if last_only else owned
    rows = PrivateRows(Rows.at(positions.tolist(), DEVICE), owned, own[-1] + 1, stale)
    queries = 2 * random(heads, len(positions), size)
    keys, values = random(kv_heads, len(own), size), random(kv_heads, len(own), size)
    return Case(queries, keys, values, rows, table)


def check(case: Case, window: int | None, launch: Launch | None, layer: int = 1) -> None:
    given = (layer, case.queries, case.keys, case.values, case.rows, case.segments)
    spec = AttentionSpec(case.queries.shape[2] ** -0.5, window)
    found = kernel.segment_attention(*given, spec, launch)
    keys, values = by_position(layer, case.keys, case.values, case.rows, case.segments)
    positions = case.rows.rows.on_device
    expected = reference_attention(case.queries, keys, values, positions, spec)
    assert found.dtype == case.queries.dtype
    torch.testing.assert_close(found, expected, rtol=0.0, atol=TOLERANCES[found.dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [32, 64, 96, 128, 256])
def test_head_sizes_and_dtypes(size: int, dtype: torch.dtype) -> None:
    check(made(4, 2, size, dtype), None, Launch(16, 16, 1, 4, 2))


@pytest.mark.parametrize("splits", [1, 3, 64])
@pytest.mark.parametrize("window", [None, 1, 20, 500])
@pytest.mark.parametrize("last_only", [False, True])
def test_windows_and_splits(last_only: bool, window: int | None, splits: int) -> None:
    check(made(2, 1, 32, last_only=last_only), window, Launch(16, 16, splits, 4, 2))


@pytest.mark.parametrize(("heads", "kv_heads", "layer"), [(7, 1, 0), (6, 2, 1), (2, 2, 0)])
def test_heads_and_layers_are_found(heads: int, kv_heads: int, layer: int) -> None:
    check(made(heads, kv_heads, 32), None, Launch(16, 16, 2, 4, 2), layer)


@pytest.mark.parametrize("every", [1, 2, 100])
def test_shares_of_own_tokens(every: int) -> None:
    """All of a segment may be stale, or nothing of it."""
    check(made(2, 1, 32, every=every), None, Launch(16, 32, 1, 4, 2))
    check(made(2, 1, 32, every=every), 9, Launch(32, 16, 3, 4, 2))


@pytest.mark.parametrize("lengths", [(1,), (64,), (1, 1, 1), (130, 3)])
def test_lengths_of_segments(lengths: tuple[int, ...]) -> None:
    check(made(4, 2, 32, lengths=lengths, every=7), None, None)


def test_stale_entries_are_never_seen() -> None:
    """And what lies in a chunk outside the segment isn't either."""
    case = made(4, 2, 32)
    given = (1, case.queries, case.keys, case.values, case.rows, case.segments)
    plain = kernel.segment_attention(*given, AttentionSpec(0.2))
    for segment in case.segments.segments:
        at = torch.arange(segment.keys.shape[2], device=DEVICE) + segment.shift
        inside = (at >= segment.start) & (at < segment.start + segment.length)
        stale = torch.ones_like(inside)
        stale[inside] = case.rows.stale[at[inside]] == 1
        segment.keys[:, :, stale] = 100.0
        segment.values[:, :, stale] = 100.0
    assert torch.equal(kernel.segment_attention(*given, AttentionSpec(0.2)), plain)


def test_chunks_that_cannot_be_read_in_place() -> None:
    """An address says nothing of what is there, so it is asked before."""
    case = made(4, 2, 32)
    first, *others = case.segments.segments
    rotations = case.segments.rotations
    half = replace(first, keys=first.keys.half(), values=first.values.half())
    strided = replace(first, keys=first.keys.transpose(2, 3).contiguous().transpose(2, 3))
    narrow = replace(first, values=first.values[:, :1].contiguous())
    for wrong in (half, strided, narrow):
        with pytest.raises(InvalidInputError, match="contiguous KV of one dtype"):
            Segments([wrong, *others], rotations)
    mine = replace(case, segments=Segments([half], rotations))
    with pytest.raises(InvalidInputError, match=r"float16 .* torch.float32"):
        check(mine, None, None)


def test_chunks_that_begin_anywhere() -> None:
    """A part of a record is as good as its tensors until a GPU reads 16 bytes of it at once."""
    case = made(4, 2, 32)
    first, *others = case.segments.segments
    room = first.values.new_zeros(first.values.numel() + 1)
    shifted = room[1:].view(first.values.shape).copy_(first.values)
    segments = Segments([replace(first, values=shifted), *others], case.segments.rotations)
    with pytest.raises(InvalidInputError, match="multiple of 16 bytes"):
        check(replace(case, segments=segments), None, None)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU leaves no trace of lines")
def test_every_line_of_the_kernel_runs() -> None:
    case = made(2, 1, 32, lengths=(20, 16))
    with Lines("attend_in_place_kernel", "add_keys", "add_block", "finish") as lines:
        for window, splits in ((None, 1), (20, 2)):
            check(case, window, Launch(16, 16, splits, 4, 2))
    lines.check(kernel.attend_in_place_kernel, online_softmax.add_keys, online_softmax.add_block)
    lines.check(online_softmax.finish)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"queries": torch.zeros(4, 3)}, r"got \(4, 3\)"),
        ({"queries": torch.zeros(4, 25, 32).half()}, "torch.float16"),
    ],
)
def test_what_the_kernel_cannot_take(change: dict[str, Any], said: str) -> None:
    case = made(4, 2, 32)
    change = {name: tensor.to(DEVICE) for name, tensor in change.items()}
    given = {"queries": case.queries, "keys": case.keys, "values": case.values} | change
    with pytest.raises(InvalidInputError, match=said):
        kernel.segment_attention(
            0, rows=case.rows, segments=case.segments, spec=AttentionSpec(1.0), **given
        )
