"""Segments copied to their positions in Triton, against the formula."""

from __future__ import annotations

import pytest
import torch

from fusionrag_integrations.attention.rope import RotaryTable
from fusionrag_integrations.attention.segments import Segment, Segments, copy_segments

pytest.importorskip("triton")

from fusionrag_integrations.attention import gather
from tests.kernels.lines import Lines

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = (33, 16, 70)
END = 130
LAYERS, HEADS = 3, 2


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def rotations(layers: int, count: int, size: int) -> RotaryTable:
    """By any angles; a dimension is turned with the one half the size away."""
    angles = random(layers, count, size)
    other = torch.arange(size, device=DEVICE, dtype=torch.int32).roll(size // 2)
    return RotaryTable(angles.cos(), angles.sin(), other)


def segments(size: int, dtype: torch.dtype) -> list[Segment]:
    """Of some of the tokens of chunks, with room before, between and behind them."""
    found, at = [], 3
    for number, length in enumerate(LENGTHS):
        chunk = (LAYERS, HEADS, length + 2 * number, size)
        kv = (random(*chunk, dtype=dtype), -random(*chunk, dtype=dtype))
        found.append(Segment(*kv, number, at, length))
        at += length + 2
    return found


def buffers(size: int, dtype: torch.dtype, layers: int) -> list[torch.Tensor]:
    """Room for keys and values in a part of something larger."""
    room = torch.full((2, layers + 2, HEADS, END + 7, size), 7.0, device=DEVICE, dtype=dtype)
    return [room[0, 1:-1, :, :END], room[1, 1:-1, :, :END]]


def gathered(
    segments: Segments, layer: int, keys: torch.Tensor, values: torch.Tensor, by_token: bool
) -> None:
    table = gather.table_of([segments], [0], by_token=by_token)
    gather.gather_segments([segments], table, layer, keys, values, by_token=by_token)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [16, 24, 128])
@pytest.mark.parametrize("rotation_layers", [1, LAYERS])
def test_a_layer_with_a_turn_a_segment(
    rotation_layers: int, size: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    source, target = dtypes
    table = Segments(segments(size, source), rotations(rotation_layers, len(LENGTHS), size))
    for layer in range(LAYERS):
        found, expected = buffers(size, target, 1), buffers(size, target, 1)
        gathered(table, layer, found[0], found[1], by_token=False)
        copy_segments(table, layer, expected[0][0], expected[1][0])
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-5)  # a rounding in bf16
            assert (mine[:, :, :3] == 7.0).all()  # where no segment stands nothing changes


@pytest.mark.parametrize("rotation_layers", [1, LAYERS])
def test_all_layers_with_a_turn_a_token(rotation_layers: int) -> None:
    size = 32
    given, by_token = segments(size, torch.float32), rotations(rotation_layers, END, size)
    keys, values = buffers(size, torch.float32, LAYERS)
    gathered(Segments(given, by_token), 0, keys, values, by_token=True)
    untouched = torch.ones(END, dtype=torch.bool, device=DEVICE)
    for segment in given:
        at = slice(segment.start, segment.start + segment.length)
        source = slice(segment.source_start, segment.source_start + segment.length)
        kept = segment.keys[:, :, source]
        turned = kept * by_token.cos[:, None, at]
        turned = turned + kept[..., by_token.other] * by_token.sin[:, None, at]
        torch.testing.assert_close(keys[:, :, at], turned)
        torch.testing.assert_close(values[:, :, at], segment.values[:, :, source])
        untouched[at] = False
    assert (keys[:, :, untouched] == 7.0).all()
    assert (values[:, :, untouched] == 7.0).all()


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU leaves no trace of lines")
def test_every_line_of_the_kernel_runs() -> None:
    given = segments(32, torch.float32)
    with Lines("gather_kernel") as lines:
        for by_token in (False, True):
            table = Segments(given, rotations(1, END, 32))
            gathered(table, 0, *buffers(32, torch.float32, 1), by_token=by_token)
    lines.check(gather.gather_kernel)
