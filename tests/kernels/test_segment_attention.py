"""Chunks in place, in Triton, against a copy of everything in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from fusionrag_integrations.attention.cascade import Cascade
from fusionrag_integrations.attention.placed import by_position
from fusionrag_integrations.attention.reference import reference_attention
from fusionrag_integrations.attention.rope import RotaryTable
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.attention.segments import (
    PrivateRows,
    Segment,
    Segments,
    SharedSequence,
)
from fusionrag_integrations.attention.sequences import Room
from fusionrag_integrations.attention.shared_runs import runs_of, shared_work
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
    """Queries [Hq, R, D] of rows among the private tokens of sequences."""

    queries: torch.Tensor
    rows: PrivateRows


def rotations(count: int, size: int, draw: torch.Generator) -> RotaryTable:
    """A dimension is turned with the one half the size away, by one angle."""
    other = torch.arange(size, device=DEVICE, dtype=torch.int32).roll(size // 2)
    angles = torch.rand(LAYERS, count, size // 2, generator=draw).to(DEVICE) * 6.0
    signs = torch.cat((-torch.ones(size // 2), torch.ones(size // 2))).to(DEVICE)
    return RotaryTable(angles.cos().repeat(1, 1, 2), angles.sin().repeat(1, 1, 2) * signs, other)


class Chunks:
    """Random chunks of lengths, which sequences are made of."""

    def __init__(
        self, lengths: Sequence[int], kv_heads: int, size: int, dtype: torch.dtype, seed: int
    ) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.lengths, self.kv_heads, self.size, self.dtype = lengths, kv_heads, size, dtype
        # The first tokens of some chunks aren't used, nor the last.
        self.kv = [
            [self.random(LAYERS, kv_heads, length + number % 3 + number, size) for _ in range(2)]
            for number, length in enumerate(lengths)
        ]

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.draw).to(DEVICE, self.dtype)

    def sequence(self, order: Sequence[int], every: int, before: int = 3) -> SharedSequence:
        """Chunks in an order, two tokens between them, six behind them.

        Every so many of a chunk's tokens are the sequence's own, and all that are in none.
        """
        segments, at, own = [], before, list(range(before))
        for number, chunk in enumerate(order):
            length = self.lengths[chunk]
            segments.append(Segment(*self.kv[chunk], chunk % 3, at, length))
            own += range(at + number, at + length, every)
            own += range(at + length, at + length + 2)
            at += length + 2
        own += range(at, at + 6)
        table = Segments(segments, rotations(len(order), self.size, self.draw))
        kv = (self.random(LAYERS, self.kv_heads, len(own), self.size) for _ in range(2))
        return SharedSequence(table, Room(*kv), torch.tensor(own))


def made(
    heads: int,
    kv_heads: int,
    size: int,
    dtype: torch.dtype = torch.float32,
    lengths: tuple[int, ...] = (19, 8, 21),
    every: int = 5,
    last_only: bool = False,
) -> Case:
    """One sequence, and rows at all of its own tokens, or the last."""
    chunks = Chunks(lengths, kv_heads, size, dtype, heads + size + every)
    sequence = chunks.sequence(range(len(lengths)), every)
    return case_of(heads, chunks, [sequence], last_only)


def case_of(
    heads: int, chunks: Chunks, sequences: Sequence[SharedSequence], last_only: bool
) -> Case:
    positions = [sequence.tokens.tolist() for sequence in sequences]
    rows = [Rows.at(own[-1:] if last_only else own, DEVICE) for own in positions]
    found = PrivateRows(rows, sequences)
    return Case(2 * chunks.random(heads, len(found), chunks.size), found)


def several(heads: int, dtype: torch.dtype = torch.float32, last_only: bool = True) -> Case:
    """Five sequences over some of the same chunks, at other places, with other tokens stale."""
    chunks = Chunks((19, 8, 21, 40), 2, 32, dtype, heads)
    orders = [((0, 1, 2), 5, 3), ((2, 0, 1, 3), 4, 1), ((3,), 100, 30), ((1, 1), 3, 0)]
    orders.append(((0, 1, 2), 7, 9))
    return case_of(heads, chunks, [chunks.sequence(*order) for order in orders], last_only)


def expected_of(case: Case, spec: AttentionSpec, layer: int) -> torch.Tensor:
    """By the formula over a copy of everything in one place."""
    found = torch.empty_like(case.queries)
    for number, (one, sequence) in enumerate(zip(case.rows.rows, case.rows.sequences, strict=True)):
        own = slice(*case.rows.starts[number : number + 2])
        room = by_position(layer, sequence)
        found[:, own] = reference_attention(
            case.queries[:, own], room.keys[0], room.values[0], one.on_device, spec
        )
    return found


def check(
    case: Case, window: int | None, launch: Launch | None, layer: int = 1, **more: Any
) -> None:
    spec = AttentionSpec(case.queries.shape[2] ** -0.5, window, **more)
    found = kernel.SegmentAttention(case.rows, launch).attend(layer, case.queries, spec)
    assert found.dtype == case.queries.dtype
    expected = expected_of(case, spec, layer)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=TOLERANCES[found.dtype])
    if DEVICE.type == "cpu":
        in_order = Cascade(case.rows).attend(layer, case.queries, spec)
        assert in_order.dtype == case.queries.dtype
        torch.testing.assert_close(in_order, expected, rtol=0.0, atol=TOLERANCES[found.dtype])


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


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_soft_caps_and_sinks(with_sinks: bool, softcap: float | None, window: int | None) -> None:
    sinks = torch.tensor([-1.0, 4.0, 0.5, 2.0], device=DEVICE) if with_sinks else None
    check(several(4), window, Launch(16, 16, 3, 4, 2), softcap=softcap, sinks=sinks)


@pytest.mark.parametrize("every", [1, 2, 100])
def test_shares_of_own_tokens(every: int) -> None:
    """All of a segment may be stale, or nothing of it."""
    check(made(2, 1, 32, every=every), None, Launch(16, 32, 1, 4, 2))
    check(made(2, 1, 32, every=every), 9, Launch(32, 16, 3, 4, 2))


@pytest.mark.parametrize("lengths", [(1,), (64,), (1, 1, 1), (130, 3)])
def test_lengths_of_segments(lengths: tuple[int, ...]) -> None:
    check(made(4, 2, 32, lengths=lengths, every=7), None, None)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("window", "splits"), [(None, 1), (1, 1), (20, 3), (500, 3)])
def test_chunks_that_several_sequences_share(
    window: int | None, splits: int, dtype: torch.dtype
) -> None:
    check(several(4, dtype), window, Launch(16, 16, splits, 4, 2))


@pytest.mark.parametrize("window", [None, 20])
def test_many_rows_of_each(window: int | None) -> None:
    check(several(2, last_only=False), window, Launch(32, 16, 2, 4, 2))


@pytest.mark.parametrize("heads", [2, 6, 14, 40])
def test_heads_that_share_a_key_head_among_several_sequences(heads: int) -> None:
    """More of them than a block has rows, too."""
    check(several(heads), None, Launch(16, 16, 3, 4, 2))
    check(several(heads), None, None)


def test_a_chunk_is_read_once_for_all_rows_that_see_it() -> None:
    case = several(2)
    runs = runs_of(case.rows)
    assert sorted(len(run) for run in runs) == [2, 3, 3, 5]  # chunk 1 stands twice in one
    work = shared_work(case.rows, 16, 1, 1)
    assert len(work.chunks) == len(runs)
    assert len(work.uses) == sum(map(len, runs))
    assert work.first_parts.diff().tolist() == [3, 4, 2, 3, 3]


def test_a_sequence_gives_the_same_whatever_shares_its_chunks() -> None:
    case, spec = several(4), AttentionSpec(0.2)
    together = kernel.SegmentAttention(case.rows).attend(1, case.queries, spec)
    in_order = (
        Cascade(case.rows).attend(1, case.queries, spec) if DEVICE.type == "cpu" else together
    )
    for number, sequence in enumerate(case.rows.sequences):
        one = PrivateRows([case.rows.rows[number]], [sequence])
        own = case.queries[:, number : number + 1]
        for found in (together, in_order):
            alone = kernel.SegmentAttention(one).attend(1, own, spec)
            torch.testing.assert_close(
                found[:, number : number + 1], alone, rtol=0.0, atol=TOLERANCES[torch.float32]
            )


def test_stale_entries_are_never_seen() -> None:
    """And what lies in a chunk outside the segment isn't either."""
    case = made(4, 2, 32)
    (sequence,) = case.rows.sequences
    attention = kernel.SegmentAttention(case.rows)
    plain = attention.attend(1, case.queries, AttentionSpec(0.2))
    for segment in sequence.segments.segments:
        at = torch.arange(segment.keys.shape[2], device=DEVICE) + segment.shift
        inside = (at >= segment.start) & (at < segment.start + segment.length)
        stale = torch.ones_like(inside)
        stale[inside] = sequence.stale[at[inside]] == 1
        segment.keys[:, :, stale] = 100.0
        segment.values[:, :, stale] = 100.0
    assert torch.equal(attention.attend(1, case.queries, AttentionSpec(0.2)), plain)


def over(case: Case, segments: Segments) -> PrivateRows:
    """The only sequence's rows over other segments."""
    (sequence,) = case.rows.sequences
    return PrivateRows(case.rows.rows, [replace(sequence, segments=segments)])


def test_chunks_that_cannot_be_read_in_place() -> None:
    """An address says nothing of what is there, so it is asked before."""
    case = made(4, 2, 32)
    (sequence,) = case.rows.sequences
    first, *others = sequence.segments.segments
    turns = sequence.segments.rotations
    half = replace(first, keys=first.keys.half(), values=first.values.half())
    strided = replace(first, keys=first.keys.transpose(2, 3).contiguous().transpose(2, 3))
    narrow = replace(first, values=first.values[:, :1].contiguous())
    for wrong in (half, strided, narrow):
        with pytest.raises(InvalidInputError, match="contiguous KV of one dtype"):
            Segments([wrong, *others], turns)
    with pytest.raises(InvalidInputError, match=r"float16 .* torch.float32"):
        kernel.SegmentAttention(over(case, Segments([half], turns)))


def test_chunks_that_begin_anywhere() -> None:
    """A part of a record is as good as its tensors until a GPU reads 16 bytes of it at once."""
    case = made(4, 2, 32)
    (sequence,) = case.rows.sequences
    first, *others = sequence.segments.segments
    room = first.values.new_zeros(first.values.numel() + 1)
    shifted = room[1:].view(first.values.shape).copy_(first.values)
    segments = [replace(first, values=shifted), *others]
    with pytest.raises(InvalidInputError, match="multiple of 16 bytes"):
        kernel.SegmentAttention(over(case, Segments(segments, sequence.segments.rotations)))


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU leaves no trace of lines")
def test_every_line_of_the_kernel_runs() -> None:
    case = made(2, 1, 32, lengths=(20, 16))
    with Lines("attend_in_place_kernel", "add_keys", "add_block", "finish") as lines:
        for window, splits in ((None, 1), (20, 2)):
            check(case, window, Launch(16, 16, splits, 4, 2), softcap=3.0)
    lines.check(kernel.attend_in_place_kernel, online_softmax.add_keys, online_softmax.add_block)
    whole = ("result =", "at = out +", "tl.store(at, result")  # private tokens are another part
    lines.check(online_softmax.finish, left_out=whole)


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        (torch.zeros(4, 3), r"got \(4, 3\)"),
        (torch.zeros(4, 25, 32).half(), "torch.float16"),
    ],
)
def test_what_the_kernel_cannot_take(queries: torch.Tensor, said: str) -> None:
    rows = made(4, 2, 32).rows
    with pytest.raises(InvalidInputError, match=said):
        kernel.SegmentAttention(rows).attend(0, queries.to(DEVICE), AttentionSpec(1.0))
