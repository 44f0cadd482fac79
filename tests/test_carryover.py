"""What recomputed tokens are off by goes to the others of their chunk, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from fusionrag_integrations.attention.rope import rotate
from fusionrag_integrations.execution.buffer import KVBuffer
from fusionrag_integrations.execution.carryover import CHANGED, NEAR, CarriedChunk, Carryover
from fusionrag_integrations.execution.chunk_kv import deviation
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.placement import place, place_in_buffer, to_resident
from fusionrag_integrations.execution.recompute import PlacedPrompt, PrefillOutput
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.selection import TokenSelection
from fusionrag_integrations.store.kv.types import ChunkKV
from tests.test_gates import (
    CHUNKS,
    TOLERANCE,
    isolated,
    model_of,
    prompt_of_chunks,
    reference_of,
    span,
    varied_families,
)
from tests.tiny_models import build

FAMILY = "llama_gqa2"


def chosen(prompt: AssembledPrompt) -> TokenSelection:
    """A few of the first chunk, its first among them, one of the second, none of the third."""
    first, second = (span.start for span in prompt.spans[:2])
    return TokenSelection((first, first + 3, first + 4, second + 7))


def carryover_of(
    model: CausalModel, prompt: AssembledPrompt, selection: TokenSelection
) -> Carryover:
    return Carryover(model, CarriedChunk.all_of(prompt, selection))


def kvs_of(model: CausalModel) -> list[ChunkKV]:
    return [isolated(model, ids) for ids in CHUNKS]


def recomputed(
    model: CausalModel, prompt: AssembledPrompt, selection: TokenSelection, *, corrected: bool
) -> tuple[KVBuffer, PrefillOutput]:
    executor = Executor(model)
    buffer = place_in_buffer(executor, prompt, kvs_of(model), len(prompt))
    return buffer, PlacedPrompt(executor, prompt, buffer, corrected=corrected).recompute(selection)


def by_the_formula(
    prompt: AssembledPrompt, selected: tuple[int, ...], off: torch.Tensor, steady: torch.Tensor
) -> dict[int, torch.Tensor]:
    """What the others are to have added, by position.

    off: [L, Hkv, N, D], canonical. steady: [L, Hkv, N].
    """
    carried = {}
    for spans in prompt.occurrences:
        positions = [p for s in spans for p in range(s.start, s.stop)]
        given = [p for p in positions[2:] if p in selected]
        for j in set(positions).difference(selected) if given else ():
            weights = {i: 3 / (3 + abs(i - j)) * steady[:, :, i, None] for i in given}
            total = sum(weight * off[:, :, i] for i, weight in weights.items())
            carried[j] = total / (1 + sum(weights.values()))
    return carried


@varied_families
def test_what_is_carried_is_the_weighted_mean(family: str) -> None:
    """Turned to where each token stands: Gemma's layers turn differently."""
    model, prompt = model_of(family), prompt_of_chunks()
    selection = chosen(prompt)
    placed = place_in_buffer(Executor(model), prompt, kvs_of(model), len(prompt))
    before = placed.keys.clone(), placed.values.clone()
    buffer, _ = recomputed(model, prompt, selection, corrected=True)

    back = model.rotation(range(len(prompt))).inverse()
    keys = rotate(buffer.keys, back), rotate(before[0], back)
    change = (keys[0] - keys[1]).norm(dim=3) / keys[1].norm(dim=3)
    steady = 1 / (1 + (change / 0.3) ** 2)
    for found, old in (keys, (buffer.values, before[1])):
        expected = by_the_formula(prompt, selection.positions, found - old, steady)
        assert set(expected) == {
            p for s in prompt.spans[:2] for p in range(s.start, s.stop)
        }.difference(selection.positions)
        for position, carried in expected.items():
            torch.testing.assert_close(
                found[:, :, position] - old[:, :, position], carried, rtol=1e-3, atol=1e-4
            )
        third = slice(prompt.spans[2].start, prompt.spans[2].stop)
        torch.testing.assert_close(found[:, :, third], old[:, :, third], rtol=0.0, atol=1e-6)


def test_a_token_that_is_another_now_tells_little() -> None:
    model, prompt = model_of(FAMILY), prompt_of_chunks()
    at = prompt.spans[0].start + 5
    carryover = carryover_of(model, prompt, TokenSelection((at,)))
    assert carryover
    before = place_in_buffer(Executor(model), prompt, kvs_of(model), len(prompt))
    keys, values = (kv[:, [at]].clone() for kv in before.layer(1))

    def told(change: float) -> float:
        """Of values that are off by 1, what the next token has added. change: of the key."""
        buffer = before.copy()
        carryover.observe(buffer, 1, (keys, values), (keys * (1 + change), values + 1))
        return float((buffer.values[1] - before.values[1])[:, at + 1].mean())

    near = NEAR / (NEAR + 1)
    assert told(0.0) == pytest.approx(near / (1 + near), rel=1e-4)
    assert told(CHANGED) == pytest.approx(near / 2 / (1 + near / 2), rel=1e-4)
    assert told(30.0) < 0.001


def test_a_key_without_length_that_stays_so_is_steady() -> None:
    """Not the quotient of nothing by nothing."""
    model, prompt = model_of(FAMILY), prompt_of_chunks()
    carryover = carryover_of(model, prompt, TokenSelection((prompt.spans[0].start + 5,)))
    assert carryover
    before = place_in_buffer(Executor(model), prompt, kvs_of(model), len(prompt))
    buffer, none = before.copy(), torch.zeros_like(before.values[1][:, :1])
    carryover.observe(buffer, 1, (none, none), (none, none + 1))
    near = buffer.values[1][:, carryover.rest] - before.values[1][:, carryover.rest]
    assert float(near.max()) == pytest.approx(0.75 / 1.75, rel=1e-4)
    torch.testing.assert_close(  # nothing stands where no chunk does, which may be no number
        buffer.keys, before.keys, rtol=0.0, atol=0.0, equal_nan=True
    )


def test_chunks_of_any_length_side_by_side() -> None:
    """One of hundreds of tokens beside some of a few: each as if it were alone."""
    model = model_of(FAMILY)
    sizes = (300, 5, 40, 6, 150)
    chunks = [tuple(4 + token % 60 for token in range(size)) for size in sizes]
    starts = [1 + sum(sizes[:n]) + n for n in range(len(sizes))]
    spans = tuple(span(ids, start) for ids, start in zip(chunks, starts, strict=True))
    tokens = (5, *(token for chunk in chunks for token in (*chunk, 6)), 7, 8)
    prompt = AssembledPrompt(tokens, spans, (len(tokens) - 2, len(tokens)))
    selected = [tuple(range(s + 3, s + n, 7)) for s, n in zip(starts, sizes, strict=True)]
    together = carryover_of(model, prompt, TokenSelection(tuple(p for s in selected for p in s)))
    assert together
    made = torch.Generator().manual_seed(0)
    off = {p: torch.randn(2, 2, 1, 16, generator=made) for p in together.positions}
    steady = torch.rand(2, len(off), generator=made)
    at = {p: i for i, p in enumerate(together.positions)}
    kv = torch.cat([off[p] for p in together.positions], 2)
    found = together.to_rest(1, kv[0], kv[1], steady)
    for positions in selected:
        alone = carryover_of(model, prompt, TokenSelection(positions))
        assert alone
        rows = [at[p] for p in positions]
        expected = alone.to_rest(1, kv[0][:, rows], kv[1][:, rows], steady[:, rows])
        here = torch.isin(together.rest, alone.rest)
        assert together.rest[here].tolist() == alone.rest.tolist()
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one[:, here], other)


def test_a_chunk_placed_twice_is_two_chunks() -> None:
    model = model_of(FAMILY)
    ids = (5, *CHUNKS[0], 6, *CHUNKS[0], 7, 8)
    size = len(CHUNKS[0])
    spans = (span(CHUNKS[0], 1), span(CHUNKS[0], 2 + size))
    prompt = AssembledPrompt(ids, spans, (len(ids) - 2, len(ids)))
    carryover = carryover_of(model, prompt, TokenSelection((3,)))
    assert carryover
    assert carryover.rest.tolist() == [p for p in range(1, 1 + size) if p != 3]


@pytest.mark.parametrize("first", [0, 1], ids=["from its beginning", "cut at its beginning"])
def test_nothing_is_carried_from_where_a_chunk_begins(first: int) -> None:
    """What its first two tokens in a prompt are off by tells of what stands right before them."""
    model = model_of(FAMILY)
    size = len(CHUNKS[0])
    ids = (5, *CHUNKS[0], 7, 8)
    spans = (span(CHUNKS[0], 1 + first, first, size - first),)
    prompt = AssembledPrompt(ids, spans, (len(ids) - 2, len(ids)))
    start = prompt.spans[0].start
    assert not CarriedChunk.all_of(prompt, TokenSelection((start, start + 1)))
    carryover = carryover_of(model, prompt, TokenSelection((start, start + 1, start + 2)))
    assert carryover
    assert carryover.positions == (start + 2,)
    assert carryover.rest.tolist() == list(range(start + 3, prompt.spans[0].stop))


def test_a_chunk_in_two_spans_is_one() -> None:
    """A boundary token between them is fresh."""
    model = model_of(FAMILY)
    first, second = span(CHUNKS[0], 1, 0, 9), span(CHUNKS[0], 11, 10, len(CHUNKS[0]) - 10)
    ids = (5, *CHUNKS[0], 7, 8)
    prompt = AssembledPrompt(ids, (first, second), (len(ids) - 2, len(ids)))
    carryover = carryover_of(model, prompt, TokenSelection((3,)))
    assert carryover
    assert carryover.rest.tolist() == [p for p in prompt.chunk_positions if p != 3]


@varied_families
def test_nothing_is_carried_where_nothing_is_off(family: str) -> None:
    """Over true KV all stays true."""
    model, prompt = model_of(family), prompt_of_chunks()
    expected, (keys, values) = reference_of(family).dense(prompt.token_ids)
    buffer = KVBuffer(keys.clone(), values.clone())
    placed = PlacedPrompt(Executor(model), prompt, buffer, corrected=True)
    warm = placed.recompute(chosen(prompt))
    torch.testing.assert_close(warm.logits[0], expected[-1], **TOLERANCE)
    torch.testing.assert_close(buffer.keys, keys, **TOLERANCE)
    torch.testing.assert_close(buffer.values, values, **TOLERANCE)


@varied_families
def test_recomputing_everything_is_dense_prefill(family: str) -> None:
    model, prompt = model_of(family), prompt_of_chunks()
    _, warm = recomputed(model, prompt, TokenSelection(prompt.chunk_positions), corrected=True)
    expected, _ = reference_of(family).dense(prompt.token_ids)
    torch.testing.assert_close(warm.logits[0], expected[-1], **TOLERANCE)


@pytest.mark.parametrize("whole", [False, True], ids=["nothing", "whole chunks"])
def test_without_a_part_of_a_chunk_nothing_changes(whole: bool) -> None:
    model, prompt = model_of(FAMILY), prompt_of_chunks()
    first = prompt.spans[0]
    selection = TokenSelection(tuple(range(first.start, first.stop)) if whole else ())
    plain, expected = recomputed(model, prompt, selection, corrected=False)
    buffer, warm = recomputed(model, prompt, selection, corrected=True)
    assert torch.equal(warm.logits, expected.logits)
    assert torch.equal(buffer.keys, plain.keys)


def test_behind_cacheblends_exact_layers() -> None:
    """Those are true for all tokens: what the selected are off by is measured in the others."""
    model, prompt = model_of(FAMILY), prompt_of_chunks()
    executor = Executor(model)
    buffer = place_in_buffer(executor, prompt, kvs_of(model), len(prompt))
    placed = PlacedPrompt(executor, prompt, buffer, corrected=True)
    placed.early_deviation()
    placed.recompute(chosen(prompt))
    _, (keys, values) = reference_of(FAMILY).dense(prompt.token_ids)
    torch.testing.assert_close(buffer.keys[:2], keys[:2], **TOLERANCE)
    torch.testing.assert_close(buffer.values[:2], values[:2], **TOLERANCE)


@varied_families
def test_shared_chunks_are_copied_not_written(family: str) -> None:
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    there = [to_resident(model, kv) for kv in kvs_of(model)]
    before = [(kv.keys.clone(), kv.values.clone()) for kv in there]
    laid = place(executor, prompt, there, len(prompt))
    warm = PlacedPrompt(executor, prompt, laid, corrected=True).recompute(chosen(prompt))
    _, expected = recomputed(model, prompt, chosen(prompt), corrected=True)
    torch.testing.assert_close(warm.logits, expected.logits, **TOLERANCE)
    for kv, (keys, values) in zip(there, before, strict=True):
        assert torch.equal(kv.keys, keys)
        assert torch.equal(kv.values, values)


def test_in_half_precision() -> None:
    model, prompt = CausalModel(build(FAMILY).bfloat16(), None, FAMILY), prompt_of_chunks()
    buffer, warm = recomputed(model, prompt, chosen(prompt), corrected=True)
    exact, expected = recomputed(model_of(FAMILY), prompt, chosen(prompt), corrected=True)
    assert buffer.keys.dtype == torch.bfloat16
    found, true = (buffer.keys, buffer.values), (exact.keys, exact.values)
    assert float(deviation(found, true).mean()) < 1e-3
    assert float((warm.logits - expected.logits).std() / expected.logits.std()) < 0.05


def test_tokens_that_share_an_error_come_nearer() -> None:
    """KV that is off by one vector all over a chunk: what is left of it shrinks."""
    model, prompt = model_of(FAMILY), prompt_of_chunks()
    _, (keys, values) = reference_of(FAMILY).dense(prompt.token_ids)
    first = prompt.spans[0]
    there = slice(first.start, first.stop)
    left = []
    for corrected in (False, True):
        off = values.clone()
        off[:, :, there] += 0.5
        buffer = KVBuffer(keys.clone(), off)
        selection = TokenSelection(tuple(range(first.start, first.stop, 4)))
        PlacedPrompt(Executor(model), prompt, buffer, corrected=corrected).recompute(selection)
        of_chunk = (buffer.keys[:, :, there], buffer.values[:, :, there])
        left.append(float(deviation(of_chunk, (keys[:, :, there], values[:, :, there])).sum()))
    assert left[1] < 0.5 * left[0]
