"""Attention of scattered rows against loops, in shapes where nothing can be mixed up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fusionrag_integrations.attention import sequences
from fusionrag_integrations.attention.attend import attend, attend_rows, write_rows
from fusionrag_integrations.attention.reference import reference_attention, reference_rows
from fusionrag_integrations.attention.rows import BLOCK, Rows, visible
from fusionrag_integrations.attention.sequences import Room, SequenceRows
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.selectors.attention_weights import weights
from fusionrag_integrations.selectors.probe import LayerView

CPU = torch.device("cpu")
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def tensors(
    heads: int, kv_heads: int, rows: int, keys: int, size: int, dtype: torch.dtype
) -> Tensors:
    draw = torch.Generator().manual_seed(heads + rows + keys + size)
    shapes = ((heads, rows, size), (kv_heads, keys, size), (kv_heads, keys, size))
    queries, k, v = (torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
    return queries * 2, k, v


def by_loops(
    given: Tensors,
    positions: Sequence[int],
    scaling: float,
    window: int | None,
    softcap: float | None = None,
    sinks: Sequence[float] | None = None,
) -> torch.Tensor:
    queries, keys, values = (t.double() for t in given)
    group = len(queries) // len(keys)
    output = torch.zeros_like(queries)
    for head in range(len(queries)):
        for row, position in enumerate(positions):
            first = 0 if window is None else max(0, position - window + 1)
            seen = range(first, position + 1)
            scores = [scaling * float(queries[head, row] @ keys[head // group, k]) for k in seen]
            if softcap is not None:
                scores = [softcap * math.tanh(score / softcap) for score in scores]
            powers = [math.exp(score) for score in scores]
            total = sum(powers) + (0.0 if sinks is None else math.exp(sinks[head]))
            for key, power in zip(seen, powers, strict=True):
                output[head, row] += power / total * values[head // group, key]
    return output.float()


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 8), (6, 2, 5), (3, 1, 16)])
@pytest.mark.parametrize("positions", [(0, 2, 3, 9, 10), (10, 0, 4), (7,), (4, 5, 6), (3, 3)])
def test_both_against_loops(
    positions: tuple[int, ...], heads: int, kv_heads: int, size: int, window: int | None
) -> None:
    given = tensors(heads, kv_heads, len(positions), 11, size, torch.float32)
    expected = by_loops(given, positions, 0.4, window)
    rows = Rows.at(positions, CPU)
    for found in (
        reference_attention(*given, rows.on_device, AttentionSpec(0.4, window)),
        attend(*given, rows, AttentionSpec(0.4, window)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("sinks", [None, (0.5, -3.0, 4.0, 1.0)])
def test_soft_caps_and_sinks_against_loops(
    sinks: tuple[float, ...] | None, softcap: float | None
) -> None:
    given = tensors(4, 2, 5, 90, 8, torch.float32)
    positions = (0, 3, 40, 41, 88)
    spec = AttentionSpec(0.4, 50, softcap, None if sinks is None else torch.tensor(sinks))
    expected = by_loops(given, positions, 0.4, 50, softcap, sinks)
    rows = Rows.at(positions, CPU)
    view = LayerView(given[0], given[1], rows.on_device, spec)
    of_weights = weights(view) @ given[2].repeat_interleave(2, dim=0)
    for found in (
        reference_attention(*given, rows.on_device, spec),
        attend(*given, rows, spec),
        of_weights,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("count", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 17])
def test_in_blocks_as_in_one(count: int, window: int | None, dtype: torch.dtype) -> None:
    keys = 3 * BLOCK
    draw = torch.Generator().manual_seed(count)
    positions = sorted(torch.randperm(keys, generator=draw)[:count].tolist())
    given = tensors(6, 2, count, keys, 64, dtype)
    rows = Rows.at(positions, CPU)
    found = attend(*given, rows, AttentionSpec(0.125, window))
    assert found.dtype == dtype
    expected = reference_attention(*given, rows.on_device, AttentionSpec(0.125, window))
    close = {"rtol": 0.0, "atol": TOLERANCES[dtype]}
    torch.testing.assert_close(found, expected, **close)
    if window is None:
        mask = torch.arange(keys) <= torch.tensor(positions)[:, None]
        repeated = [t.repeat_interleave(3, dim=0) for t in given[1:]]
        whole = scaled_dot_product_attention(given[0], *repeated, attn_mask=mask, scale=0.125)
        torch.testing.assert_close(found, whole, **close)


def test_what_no_row_sees_is_never_read() -> None:
    positions = [3 * BLOCK, 3 * BLOCK + 1, *range(4 * BLOCK, 5 * BLOCK)]
    given = tensors(4, 2, len(positions), 6 * BLOCK, 8, torch.float32)
    rows = Rows.at(positions, CPU)
    plain = attend(*given, rows, AttentionSpec(0.3, window=BLOCK))
    for unseen in (slice(0, 2 * BLOCK), slice(5 * BLOCK, None)):
        given[1][:, unseen] = torch.nan
        given[2][:, unseen] = torch.nan
    assert torch.equal(attend(*given, rows, AttentionSpec(0.3, window=BLOCK)), plain)


@pytest.mark.parametrize("kept", [sequences.MASKS_KEPT, 0], ids=["masks kept", "masks made"])
@pytest.mark.parametrize("window", [None, 40])
def test_rows_of_several_sequences(
    window: int | None, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly as of each alone: what stands beside them is never looked at."""
    monkeypatch.setattr(sequences, "MASKS_KEPT", kept)
    spec, rows, rooms = AttentionSpec(0.2, window), [], []
    for number, (count, keys) in enumerate(((1, 30), (BLOCK + 3, 200), (1, 1), (20, 90))):
        draw = torch.Generator().manual_seed(number)
        rows.append(Rows.at(sorted(torch.randperm(keys, generator=draw)[:count].tolist()), CPU))
        rooms.append(Room(*torch.randn(2, 3, 2, keys + 5, 16, generator=draw)))
    several = SequenceRows(rows, rooms)
    queries = torch.randn(6, len(several), 16)
    found = attend_rows(2, queries, several, spec)
    expected = reference_rows(2, queries, several, spec)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    new = torch.randn(2, 2, len(several), 16)
    for number, (one, room) in enumerate(zip(rows, rooms, strict=True)):
        own = slice(*several.starts[number : number + 2])
        alone = attend(queries[:, own], room.keys[2], room.values[2], one, spec)
        assert torch.equal(found[:, own], alone)
    before = [(room.keys.clone(), room.values.clone()) for room in rooms]
    write_rows(1, new[0], new[1], several)
    for number, (one, room) in enumerate(zip(rows, rooms, strict=True)):
        own = slice(*several.starts[number : number + 2])
        for kept, old, put in zip((room.keys, room.values), before[number], new, strict=True):
            old[1][:, list(one.positions)] = put[:, own]
            assert torch.equal(kept, old)


def test_blocks_know_where_their_rows_stand() -> None:
    rows = Rows.at([5, *range(BLOCK), 900, 7], CPU)
    assert len(rows) == BLOCK + 3
    assert rows.on_device.tolist() == list(rows.positions)
    spans = [(b.start, b.stop, b.first, b.last) for b in rows.blocks]
    assert spans == [(0, BLOCK, 0, BLOCK - 2), (BLOCK, BLOCK + 3, 7, 900)]


def test_a_window_of_one_sees_itself() -> None:
    assert visible(torch.tensor([2, 0]), 4, 1).tolist() == [
        [False, False, True, False],
        [True, False, False, False],
    ]
