"""The Triton kernel against the formula: on a GPU, else by Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch

from fusionrag_integrations.attention.reference import reference_attention, reference_rows
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.attention.sequences import Room, SequenceRows
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.errors import InvalidInputError

pytest.importorskip("triton")

from fusionrag_integrations.attention import online_softmax, scatter
from fusionrag_integrations.attention import sparse_attention as kernel
from tests.kernels.lines import Lines

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCES = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def made(
    heads: int, kv_heads: int, rows: int, keys: int, size: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys, values and ascending positions."""
    draw = torch.Generator().manual_seed(heads * rows + keys + size)
    queries = 2 * torch.randn(heads, rows, size, generator=draw)
    keys_, values = (torch.randn(kv_heads, keys, size, generator=draw) for _ in range(2))
    positions = torch.randperm(keys, generator=draw)[:rows].sort().values
    return (*(t.to(DEVICE, dtype) for t in (queries, keys_, values)), positions.to(DEVICE))


def attended(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    spec: AttentionSpec,
    launch: kernel.Launch | None = None,
) -> torch.Tensor:
    """Of one sequence: its rows at these positions."""
    rows = Rows.at(positions.tolist(), positions.device)
    several = SequenceRows([rows], [Room(keys[None], values[None])])
    return kernel.triton_attention(0, queries, several, spec, launch)


def check(given: Any, window: int | None, launch: Any, **more: Any) -> None:
    queries, keys, values, positions = given
    spec = AttentionSpec(queries.shape[2] ** -0.5, window, **more)
    found = attended(queries, keys, values, positions, spec, launch)
    expected = reference_attention(queries, keys, values, positions, spec)
    assert found.dtype == queries.dtype
    torch.testing.assert_close(found, expected, rtol=0.0, atol=TOLERANCES[queries.dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [32, 64, 96, 128, 256])
def test_head_sizes_and_dtypes(size: int, dtype: torch.dtype) -> None:
    check(made(4, 2, 9, 75, size, dtype), None, kernel.Launch(16, 16, 1, 4, 2))


@pytest.mark.parametrize(("heads", "kv_heads"), [(7, 1), (6, 2), (2, 2), (1, 1)])
def test_groups_of_heads_that_share_keys(heads: int, kv_heads: int) -> None:
    check(made(heads, kv_heads, 9, 40, 32), None, kernel.Launch(16, 16, 2, 4, 2))


@pytest.mark.parametrize("splits", [1, 3, 64])
@pytest.mark.parametrize("window", [None, 1, 20, 500])
@pytest.mark.parametrize(("rows", "keys"), [(1, 70), (19, 75)])
def test_windows_and_splits(rows: int, keys: int, window: int | None, splits: int) -> None:
    check(made(2, 1, rows, keys, 32), window, kernel.Launch(16, 16, splits, 4, 2))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_soft_caps_and_sinks(
    with_sinks: bool, softcap: float | None, window: int | None, splits: int
) -> None:
    sinks = torch.tensor([-1.0, 4.0, 0.5, 2.0], device=DEVICE) if with_sinks else None
    given, launch = made(4, 2, 19, 75, 32), kernel.Launch(16, 16, splits, 4, 2)
    check(given, window, launch, softcap=softcap, sinks=sinks)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_the_layout_that_it_chooses_itself(rows: int) -> None:
    check(made(14, 2, rows, 300, 64), None, None)


@pytest.mark.parametrize("order", ["descending", "repeated"])
def test_positions_in_any_order(order: str) -> None:
    queries, keys, values, positions = made(2, 1, 40, 100, 32)
    positions = positions.flip(0) if order == "descending" else positions[:20].repeat(2)
    for splits in (1, 3):
        launch = kernel.Launch(32, 32, splits, 4, 2)
        check((queries, keys, values, positions), 30, launch)


def test_strides_are_the_tensors_own() -> None:
    """As transformers gives them: heads and rows exchanged, keys a part of a longer buffer."""
    queries, keys, values, positions = made(4, 2, 20, 60, 64)
    queries = queries.transpose(0, 1).contiguous().transpose(0, 1)
    longer = [torch.full((2, 90, 64), torch.nan, device=DEVICE) for _ in range(2)]
    for buffer, kv in zip(longer, (keys, values), strict=True):
        buffer[:, :60] = kv
    given = (queries, longer[0][:, :60], longer[1][:, :60], positions)
    assert not queries.is_contiguous()
    for splits in (1, 2):
        check(given, None, kernel.Launch(32, 32, splits, 4, 2))


def test_blocks_that_no_row_sees_are_skipped() -> None:
    queries, keys, values, _ = made(2, 1, 32, 256, 32)
    positions = torch.arange(128, 160, device=DEVICE)
    for buffer in (keys, values):  # read, these would spoil every sum
        buffer[:, :64] = torch.nan
        buffer[:, 160:] = torch.nan
    for splits in (1, 4):
        launch = kernel.Launch(16, 32, splits, 4, 2)
        found = attended(queries, keys, values, positions, AttentionSpec(0.1, 64), launch)
        assert found.isfinite().all()


@pytest.mark.parametrize(
    ("rows", "keys", "multiprocessors", "splits"),
    [
        (1, 32_000, 132, 64),  # decode: as many as may be
        (50, 32_000, 132, 11),  # a suffix: 12 programs without
        (5_000, 32_000, 132, 1),
        (50, 32_000, 1, 1),  # no GPU
        (1, 100, 132, 1),  # too few keys
    ],
)
def test_few_rows_split_the_keys(rows: int, keys: int, multiprocessors: int, splits: int) -> None:
    launch = kernel.launch_for(28, 4, rows, keys, 256, multiprocessors)
    assert launch.splits == splits


@pytest.mark.parametrize("rows", [1, 5, 5_000])
@pytest.mark.parametrize("head_bytes", [64, 256, 512, 1024])
def test_blocks_fit_in_shared_memory(head_bytes: int, rows: int) -> None:
    """Queries once, keys and values as often as there are stages: 227 KB on a Hopper."""
    launch = kernel.launch_for(28, 4, rows, 32_000, head_bytes, 132)
    held = launch.block_m + 2 * launch.stages * launch.block_n
    assert held * head_bytes <= 227 * 1024
    assert min(launch.block_m, launch.block_n) >= 16


def several(
    shapes: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float32, order: int = 1
) -> tuple[torch.Tensor, SequenceRows]:
    """Queries and rows of sequences of so many rows and keys, in the last of two layers.

    order: -1 for rows from the last to the first.
    """
    draw = torch.Generator().manual_seed(len(shapes))
    rows, rooms = [], []
    for count, keys in shapes:
        positions = torch.randperm(keys, generator=draw)[:count].sort().values[::1]
        rows.append(Rows.at(positions.tolist()[::order], DEVICE))
        kv = torch.randn(2, 2, 2, keys + 3, 32, generator=draw).to(DEVICE, dtype)
        kv[..., keys:, :] = torch.nan  # room for what comes later
        rooms.append(Room(kv[0], kv[1]))
    found = SequenceRows(rows, rooms)
    queries = 2 * torch.randn(6, len(found), 32, generator=draw).to(DEVICE, dtype)
    return queries, found


SEVERAL = [
    [(1, 70)],
    [(1, 70), (1, 3), (1, 200), (1, 1)],
    [(9, 75), (1, 40), (20, 20), (1, 130), (33, 64)],
]


@pytest.mark.parametrize("shapes", SEVERAL)
@pytest.mark.parametrize(
    ("splits", "window", "dtype"),
    [
        *product([1, 3], [None, 1, 20], [torch.float32]),
        *product([3], [20], [torch.bfloat16, torch.float16]),
    ],
)
def test_rows_of_several_sequences(
    splits: int, window: int | None, shapes: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    for order in (1, -1):
        queries, rows = several(shapes, dtype, order)
        spec = AttentionSpec(32**-0.5, window)
        launch = kernel.Launch(16, 16, splits, 4, 2)
        found = kernel.triton_attention(1, queries, rows, spec, launch)
        expected = reference_rows(1, queries, rows, spec)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=TOLERANCES[dtype])


def test_a_sequence_gives_the_same_whatever_stands_beside_it() -> None:
    """With the same layout exactly; a layout of its own splits sums elsewhere."""
    queries, rows = several(SEVERAL[-1])
    spec = AttentionSpec(0.2)
    for launch in (kernel.Launch(16, 16, 2, 4, 2), None):
        together = kernel.triton_attention(0, queries, rows, spec, launch)
        for number, room in enumerate(rows.rooms):
            own = slice(*rows.starts[number : number + 2])
            one = SequenceRows([rows.rows[number]], [room])
            alone = kernel.triton_attention(0, queries[:, own], one, spec, launch)
            if launch is None:
                torch.testing.assert_close(together[:, own], alone, rtol=0.0, atol=5e-6)
            else:
                assert torch.equal(together[:, own], alone)


def test_new_rows_are_written_to_their_own_slots() -> None:
    _, rows = several(SEVERAL[-1])
    _, by_torch = several(SEVERAL[-1])
    new = torch.randn(len(rows), 2, 2 * 32, device=DEVICE).transpose(0, 1)
    for layer in (1, 0):
        keys, values = new[..., :32], new[..., 32:]  # of strides that transformers gives them
        scatter.scatter_rows(layer, keys, values, rows)
        for number, room in enumerate(by_torch.rooms):
            own = slice(*rows.starts[number : number + 2])
            room.keys[layer][:, rows.rows[number].on_device] = keys[:, own]
            room.values[layer][:, rows.rows[number].on_device] = values[:, own]
        for mine, other in zip(rows.rooms, by_torch.rooms, strict=True):
            torch.testing.assert_close(mine.keys, other.keys, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(mine.values, other.values, rtol=0, atol=0, equal_nan=True)
        new = -new


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU leaves no trace of lines")
def test_every_line_of_the_kernels_runs() -> None:
    """Else the tests above would say nothing of it."""
    given = made(2, 1, 20, 75, 32)
    with Lines(
        "attend_kernel", "scatter_kernel", "add_keys", "add_block", "finish", "combine"
    ) as lines:
        for window, splits in ((None, 1), (20, 3)):
            special = {"softcap": 3.0, "sinks": torch.zeros(2, device=DEVICE)}
            check(given, window, kernel.Launch(16, 16, splits, 4, 2), **special)
        _, rows = several(SEVERAL[-1])
        new = torch.randn(2, len(rows), 32)
        scatter.scatter_rows(0, new, new, rows)
    softmax = online_softmax
    lines.check(
        kernel.attend_kernel,
        scatter.scatter_kernel,
        softmax.add_keys,
        softmax.finish,
        softmax.combine,
    )
    # What is stale is the other kernel's.
    lines.check(softmax.add_block, left_out=("reached", "old", "score = tl.where(old"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"queries": torch.zeros(4, 3)}, r"got \(4, 3\)"),
        ({"queries": torch.zeros(5, 3, 64)}, "multiple of Hkv"),
        ({"values": torch.zeros(2, 8, 64)}, "need keys and values"),
        ({"positions": torch.zeros(4, dtype=torch.int64)}, "for 4 rows"),
        ({"queries": torch.zeros(4, 3, 64).half()}, "torch.float16"),
        ({"values": torch.zeros(2, 9, 64).half()}, "need keys and values"),
        ({"queries": torch.zeros(4, 64, 3).transpose(1, 2)}, "isn't contiguous"),
        ({"keys": torch.zeros(2, 64, 9).transpose(1, 2)}, "the same strides"),
        ({"queries": torch.zeros(4, 3, 64, device="meta")}, "one device"),
    ],
)
def test_what_the_kernel_cannot_take(change: dict[str, Any], said: str) -> None:
    given = dict(zip(("queries", "keys", "values", "positions"), made(4, 2, 3, 9, 64), strict=True))
    change = {k: t if t.is_meta else t.to(DEVICE) for k, t in change.items()}
    with pytest.raises(InvalidInputError, match=said):
        attended(**(given | change), spec=AttentionSpec(1.0))


def test_other_head_sizes_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"size 80 are not supported; .*64, 96"):
        attended(*made(2, 1, 3, 9, 80), spec=AttentionSpec(1.0))
