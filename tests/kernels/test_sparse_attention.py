"""The Triton kernel against the formula: on a GPU, else by Triton's interpreter on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusionrag_integrations.attention.reference import reference_attention
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.errors import InvalidInputError

pytest.importorskip("triton")

from fusionrag_integrations.attention import online_softmax
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


def check(given: Any, window: int | None, launch: Any) -> None:
    queries, keys, values, positions = given
    spec = AttentionSpec(queries.shape[2] ** -0.5, window)
    found = kernel.triton_attention(queries, keys, values, positions, spec, launch)
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
        found = kernel.triton_attention(
            queries, keys, values, positions, AttentionSpec(0.1, 64), launch
        )
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


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU leaves no trace of lines")
def test_every_line_of_the_kernels_runs() -> None:
    """Else the tests above would say nothing of it."""
    given = made(2, 1, 20, 75, 32)
    with Lines(
        "attend_kernel", "rows_of_program", "add_keys", "add_block", "finish", "combine"
    ) as lines:
        for window, splits in ((None, 1), (20, 3)):
            check(given, window, kernel.Launch(16, 16, splits, 4, 2))
    softmax = online_softmax
    lines.check(
        kernel.attend_kernel,
        softmax.rows_of_program,
        softmax.add_keys,
        softmax.finish,
        softmax.combine,
    )
    # What is stale is the other kernel's.
    lines.check(softmax.add_block, left_out=("old", "score = tl.where((old"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"queries": torch.zeros(4, 3)}, r"got \(4, 3\)"),
        ({"queries": torch.zeros(5, 3, 64)}, "multiple of Hkv"),
        ({"values": torch.zeros(2, 8, 64)}, r"\(2, 8, 64\)"),
        ({"positions": torch.zeros(4, dtype=torch.int64)}, r"\(4,\)"),
        ({"positions": torch.zeros(3)}, "torch.float32; give int64"),
        ({"keys": torch.zeros(2, 9, 64).half()}, "torch.float16"),
        ({"queries": torch.zeros(4, 64, 3).transpose(1, 2)}, "isn't contiguous"),
        ({"queries": torch.zeros(4, 3, 64, device="meta")}, "one device"),
    ],
)
def test_what_the_kernel_cannot_take(change: dict[str, Any], said: str) -> None:
    given = dict(zip(("queries", "keys", "values", "positions"), made(4, 2, 3, 9, 64), strict=True))
    change = {k: t if t.is_meta else t.to(DEVICE) for k, t in change.items()}
    with pytest.raises(InvalidInputError, match=said):
        kernel.triton_attention(**(given | change), spec=AttentionSpec(1.0))


def test_other_head_sizes_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"size 80 are not supported; .*64, 96"):
        kernel.triton_attention(*made(2, 1, 3, 9, 80), spec=AttentionSpec(1.0))
