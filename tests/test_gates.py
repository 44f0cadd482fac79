"""The correctness gates, for a tiny random model of every supported family.

Each compares with transformers' own dense model (tests/reference.py), in float32 within 1e-4.
"""

from __future__ import annotations

import random
from copy import deepcopy
from functools import lru_cache

import pytest
import torch

from fusionrag_integrations.attention.rope import rotate
from fusionrag_integrations.documents.chunk_record import ChunkRecord, EncodedChunk
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.execution.chunk_kv import (
    Fusion,
    fuse_chunks,
    prefill_chunks,
    prefill_prefix,
)
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.placement import place_in_buffer
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.prompt.assembled import AssembledPrompt, Span
from fusionrag_integrations.selectors.selection import TokenSelection
from fusionrag_integrations.store.kv.types import ChunkKV
from tests.reference import Reference
from tests.tiny_models import FACTORIES, VARIED, VOCABULARY, build, heads, of, rope

TOLERANCE = {"rtol": 0.0, "atol": 1e-4}

every_family = pytest.mark.parametrize("family", FACTORIES)
varied_families = pytest.mark.parametrize("family", VARIED)  # what other tests are tried with


@lru_cache(maxsize=2)
def model_of(family: str) -> CausalModel:
    return CausalModel(build(family), None, family)


@lru_cache(maxsize=2)
def reference_of(family: str) -> Reference:
    return Reference(build(family))


def tokens(seed: int, count: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(3, VOCABULARY) for _ in range(count))


PREFIX = tokens(1, 7)
CHUNKS = (tokens(2, 23), tokens(3, 31), tokens(4, 17))
HEAD, GLUE, SUFFIX = tokens(5, 8), tokens(6, 2), tokens(7, 9)  # HEAD is longer than PREFIX


def isolated(model: CausalModel, ids: tuple[int, ...], key: str = "") -> ChunkKV:
    executor = Executor(model)
    return prefill_chunks(executor, prefill_prefix(executor, PREFIX), {key: ids})[0]


def span(ids: tuple[int, ...], start: int, source: int = 0, length: int | None = None) -> Span:
    chunk = Chunk(id=f"chunk{ids[:4]}", document_id="d", index=0, text="x")
    encoded = EncodedChunk(chunk, ids, tuple((i, i + 1) for i in range(len(ids))))
    return Span(ChunkRecord(encoded, "00"), "isolated", source, start, length or len(ids))


def prompt_of_chunks() -> AssembledPrompt:
    """HEAD chunk0 GLUE chunk1 GLUE chunk2 SUFFIX; chunk1 lacks its first and last token."""
    ids, spans = list(HEAD), []
    for i, chunk in enumerate(CHUNKS):
        cut = 1 if i == 1 else 0
        spans.append(span(chunk, len(ids) + cut, cut, len(chunk) - 2 * cut))
        ids += [*chunk, *(GLUE if i < 2 else ())]
    start = len(ids)
    return AssembledPrompt((*ids, *SUFFIX), tuple(spans), (start, start + len(SUFFIX)))


def warm(
    model: CausalModel, prompt: AssembledPrompt, kvs: list[ChunkKV], selected: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    executor = Executor(model)
    buffer = place_in_buffer(executor, prompt, kvs, len(prompt) + 3)
    logits = PlacedPrompt(executor, prompt, buffer).recompute(TokenSelection(selected)).logits[0]
    return logits, buffer.keys[:, :, : len(prompt)], buffer.values[:, :, : len(prompt)]


def assert_recomputed_is_dense(model: CausalModel, reference: Reference) -> None:
    """With all chunk tokens recomputed."""
    prompt = prompt_of_chunks()
    kvs = [isolated(model, ids) for ids in CHUNKS]
    logits, keys, values = warm(model, prompt, kvs, prompt.chunk_positions)
    dense_logits, (dense_keys, dense_values) = reference.dense(prompt.token_ids)
    torch.testing.assert_close(logits, dense_logits[-1], **TOLERANCE)
    torch.testing.assert_close(keys, dense_keys, **TOLERANCE)
    torch.testing.assert_close(values, dense_values, **TOLERANCE)


@every_family
def test_gate_1_recompute_everything_is_dense_prefill(family: str) -> None:
    assert_recomputed_is_dense(model_of(family), reference_of(family))


def test_queries_that_are_scaled_by_position_are_so_when_recomputed() -> None:
    """Beyond `original_max_position_embeddings`, which tiny models have further out."""
    scaled = of(
        "ministral3",
        **heads(4, 2),
        **rope("yarn", factor=4.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.5),
    )
    torch.manual_seed(0)
    hf = scaled().eval()
    assert_recomputed_is_dense(CausalModel(deepcopy(hf), None, "scaled"), Reference(hf))


@every_family
def test_gate_2_isolated_chunk_behind_its_prefix_is_exact(family: str) -> None:
    model = model_of(family)
    ids = (*PREFIX, *CHUNKS[0], *SUFFIX)
    start = len(PREFIX)
    stop = start + len(CHUNKS[0])
    prompt = AssembledPrompt(ids, (span(CHUNKS[0], start),), (stop, len(ids)))
    logits, keys, values = warm(model, prompt, [isolated(model, CHUNKS[0])], ())
    dense_logits, (dense_keys, dense_values) = reference_of(family).dense(ids)
    torch.testing.assert_close(logits, dense_logits[-1], **TOLERANCE)
    torch.testing.assert_close(keys, dense_keys, **TOLERANCE)
    torch.testing.assert_close(values, dense_values, **TOLERANCE)


@every_family
def test_gate_2_fused_chunk_behind_its_neighbours_is_exact(family: str) -> None:
    model, reference = model_of(family), reference_of(family)
    executor = Executor(model)
    first, second, chunk = CHUNKS
    neighbours = (isolated(model, first, "aa"), isolated(model, second, "bb"))
    prefix = prefill_prefix(executor, PREFIX)
    fusion = Fusion("cc", isolated(model, chunk), neighbours)
    ((fused, _),) = fuse_chunks(executor, prefix, [fusion])
    assert fused.kind == "fused"
    assert fused.neighbours == ("aa", "bb")
    at_first = len(PREFIX)
    at_second = at_first + len(first)
    start = at_second + len(second)
    cache = reference.new_cache()
    reference.feed(cache, PREFIX, 0)
    reference.append(cache, reference.isolated(PREFIX, first, at_first))
    reference.append(cache, reference.isolated(PREFIX, second, at_second))
    reference.feed(cache, chunk, start)
    keys, values = reference.kv(cache)
    at_home = rotate(fused.keys, model.rotation(range(start, start + len(chunk))))
    torch.testing.assert_close(at_home, keys[:, :, start:], **TOLERANCE)
    torch.testing.assert_close(fused.values, values[:, :, start:], **TOLERANCE)


@every_family
def test_gate_2_fused_behind_one_neighbour_is_dense(family: str) -> None:
    """A first neighbour's isolated KV stands where it was made, so nothing is approximate."""
    model = model_of(family)
    executor = Executor(model)
    neighbour, chunk = CHUNKS[:2]
    prefix = prefill_prefix(executor, PREFIX)
    fusion = Fusion("cc", isolated(model, chunk), (isolated(model, neighbour, "aa"),))
    ((fused, _),) = fuse_chunks(executor, prefix, [fusion])
    start = len(PREFIX) + len(neighbour)
    _, (keys, values) = reference_of(family).dense((*PREFIX, *neighbour, *chunk))
    at_home = rotate(fused.keys, model.rotation(range(start, start + len(chunk))))
    torch.testing.assert_close(at_home, keys[:, :, start:], **TOLERANCE)
    torch.testing.assert_close(fused.values, values[:, :, start:], **TOLERANCE)


@every_family
@pytest.mark.parametrize("distance", [1, 37, 300])
def test_gate_3_moving_there_and_back_is_identity(family: str, distance: int) -> None:
    model = model_of(family)
    torch.manual_seed(distance)
    keys = torch.randn(model.kv_layers, model.num_kv_heads, 13, model.head_dim)
    there = model.rotation(range(distance, distance + 13))
    moved = rotate(keys, there)
    assert not torch.allclose(moved, keys, atol=1e-2)
    torch.testing.assert_close(rotate(moved, there.inverse()), keys, rtol=0.0, atol=1e-5)


@every_family
@pytest.mark.parametrize("start", [len(PREFIX), 60, 311])
def test_gate_3_moved_keys_are_what_the_model_makes_there(family: str, start: int) -> None:
    model = model_of(family)
    kv = isolated(model, CHUNKS[1])
    keys, values = reference_of(family).isolated(PREFIX, CHUNKS[1], start)
    moved = rotate(kv.keys, model.rotation(range(start, start + len(CHUNKS[1]))))
    torch.testing.assert_close(moved, keys, **TOLERANCE)
    torch.testing.assert_close(kv.values, values, **TOLERANCE)


@every_family
def test_gate_4_select_nothing_is_a_concatenated_cache(family: str) -> None:
    model, reference, prompt = model_of(family), reference_of(family), prompt_of_chunks()
    logits, keys, values = warm(model, prompt, [isolated(model, ids) for ids in CHUNKS], ())
    cache, at = reference.new_cache(), 0
    for placed in prompt.spans:
        reference.feed(cache, prompt.token_ids[at : placed.start], at)
        whole = placed.record.encoded.token_ids
        made = reference.isolated(PREFIX, whole, placed.start - placed.source_start)
        cut = slice(placed.source_start, placed.source_start + placed.length)
        reference.append(cache, (made[0][:, :, cut], made[1][:, :, cut]))
        at = placed.stop
    expected = reference.feed(cache, prompt.token_ids[at:], at)
    expected_keys, expected_values = reference.kv(cache)
    torch.testing.assert_close(logits, expected[-1], **TOLERANCE)
    torch.testing.assert_close(keys, expected_keys, **TOLERANCE)
    torch.testing.assert_close(values, expected_values, **TOLERANCE)


@torch.inference_mode()
@every_family
def test_gate_5_rows_in_any_order_beside_any_content(family: str) -> None:
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    selected = prompt.chunk_positions[3::5]
    logits, keys, values = warm(model, prompt, kvs, selected)

    buffer = place_in_buffer(executor, prompt, kvs, len(prompt) + 50)
    rows = sorted({*prompt.fresh_positions, *selected})
    for slots in (rows, range(len(prompt), buffer.capacity)):
        buffer.keys[:, :, list(slots)] = float("nan")  # nothing undefined may be read
        buffer.values[:, :, list(slots)] = float("nan")
    shuffled = rows[:-1]
    random.Random(0).shuffle(shuffled)
    shuffled.append(rows[-1])
    (again,) = executor.forward_rows([prompt.token_ids[p] for p in shuffled], shuffled, buffer)
    torch.testing.assert_close(again, logits, **TOLERANCE)
    torch.testing.assert_close(buffer.keys[:, :, : len(prompt)], keys, **TOLERANCE)
    torch.testing.assert_close(buffer.values[:, :, : len(prompt)], values, **TOLERANCE)


@every_family
def test_gate_5_the_probe_changes_nothing(family: str) -> None:
    """Fresh tokens that the probe has computed give the same as computing all at once."""
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    selected = prompt.chunk_positions[10::4]
    logits, keys, values = warm(model, prompt, kvs, selected)
    buffer = place_in_buffer(executor, prompt, kvs, len(prompt))
    placed = PlacedPrompt(executor, prompt, buffer)
    (view,) = placed.suffix([model.num_layers - 1])
    assert view.queries.shape[:2] == (model.num_heads, len(SUFFIX))
    assert view.queries.shape[2] == view.keys.shape[2]
    probed = placed.recompute(TokenSelection(selected)).logits[0]
    torch.testing.assert_close(probed, logits, **TOLERANCE)
    torch.testing.assert_close(buffer.keys, keys, **TOLERANCE)
    torch.testing.assert_close(buffer.values, values, **TOLERANCE)


@every_family
def test_stored_kv_is_never_modified(family: str) -> None:
    model, prompt = model_of(family), prompt_of_chunks()
    kvs = [isolated(model, ids) for ids in CHUNKS]
    before = [(kv.keys.clone(), kv.values.clone()) for kv in kvs]
    warm(model, prompt, kvs, prompt.chunk_positions[::2])
    for kv, (keys, values) in zip(kvs, before, strict=True):
        assert torch.equal(kv.keys, keys)
        assert torch.equal(kv.values, values)


@every_family
def test_decoding_goes_on_as_dense(family: str) -> None:
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    buffer = place_in_buffer(
        executor, prompt, [isolated(model, ids) for ids in CHUNKS], len(prompt) + 6
    )
    PlacedPrompt(executor, prompt, buffer).recompute(TokenSelection(prompt.chunk_positions))
    step = executor.appender(buffer, len(prompt))
    _, dense_step = executor.prefill_dense(prompt.token_ids)
    ids = tokens(8, 6)
    expected, _ = reference_of(family).dense((*prompt.token_ids, *ids))
    for offset, token in enumerate(ids):
        at = len(prompt) + offset
        torch.testing.assert_close(step(token), expected[at], **TOLERANCE)
        torch.testing.assert_close(dense_step(token), expected[at], **TOLERANCE)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def typical(a: torch.Tensor, b: torch.Tensor) -> float:
    """The distance of three quarters of the tokens: rounding can give one another expert."""
    off, size = (x.float().square().sum((0, 1, 3)).sqrt() for x in (a.float() - b.float(), b))
    return float((off / size).quantile(0.75))


@every_family
def test_bf16_loses_no_more_than_the_model_itself(family: str) -> None:
    """Rounding to bf16 costs the dense model something; placing and recomputing adds little."""
    half = CausalModel(build(family, torch.bfloat16), None, family)
    prompt = prompt_of_chunks()
    kvs = [isolated(half, ids) for ids in CHUNKS]
    assert kvs[0].keys.dtype == torch.bfloat16
    logits, keys, values = warm(half, prompt, kvs, prompt.chunk_positions)
    exact_logits, exact = reference_of(family).dense(prompt.token_ids)
    own_logits, own = Reference(build(family, torch.bfloat16)).dense(prompt.token_ids)
    own_losses = map(distance, own_logits[-len(SUFFIX) :], exact_logits[-len(SUFFIX) :])
    assert distance(logits, exact_logits[-1]) < 1.5 * max(own_losses)  # a row's is chance
    for found, its_own, true in zip((keys, values), own, exact, strict=True):
        assert typical(found, true) < 1.5 * typical(its_own, true)


@every_family
def test_bf16_keys_move_as_well_as_they_are_made(family: str) -> None:
    start = 311
    half = CausalModel(build(family, torch.bfloat16), None, family)
    exact, _ = reference_of(family).isolated(PREFIX, CHUNKS[1], start)
    own, _ = Reference(build(family, torch.bfloat16)).isolated(PREFIX, CHUNKS[1], start)
    moved = rotate(
        isolated(half, CHUNKS[1]).keys, half.rotation(range(start, start + len(CHUNKS[1])))
    )
    assert distance(moved, exact) < 1.5 * distance(own, exact)
