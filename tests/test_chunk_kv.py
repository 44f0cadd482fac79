"""What fusing notes of a chunk, against the attention and the KV of transformers' own model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
import torch

from fusionrag_integrations.attention.rope import rotate
from fusionrag_integrations.documents.chunk_record import ContextTrace
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.chunk_kv import (
    Fusion,
    fuse_chunks,
    prefill_chunks,
    prefill_prefix,
)
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.kv.types import ChunkKV
from tests.reference import KV, Reference
from tests.test_gates import CHUNKS, PREFIX, TOLERANCE, isolated, model_of, reference_of, tokens
from tests.tiny_models import build

families = pytest.mark.parametrize("family", ["llama_gqa2", "qwen3", "gemma3", "phi3_partial"])

CHUNK = CHUNKS[2]
NAMES = ("aa", "bb")


def traced(family: str, neighbours: Sequence[tuple[int, ...]]) -> tuple[ChunkKV, ContextTrace]:
    model = model_of(family)
    before = [isolated(model, ids, key) for ids, key in zip(neighbours, NAMES, strict=False)]
    alone = isolated(model, CHUNK)
    return fuse(model, prefill_prefix(Executor(model), PREFIX), alone, before)


def fuse(
    model: CausalModel, prefix: ChunkKV, alone: ChunkKV, before: Sequence[ChunkKV]
) -> tuple[ChunkKV, ContextTrace]:
    (made,) = fuse_chunks(Executor(model), prefix, [Fusion("cc", alone, tuple(before))])
    return made


def eager(family: str, neighbours: Sequence[tuple[int, ...]]) -> tuple[list[torch.Tensor], KV]:
    """The chunk's attention, [Hq, T, N] by layer, and its KV, behind the prefix and neighbours.

    The neighbours' KV was made behind the prefix alone, at the positions where they stand.
    """
    reference = Reference(build(family))
    reference.model.set_attn_implementation("eager")
    cache, at = reference.new_cache(), len(PREFIX)
    reference.feed(cache, PREFIX, 0)
    for ids in neighbours:
        reference.append(cache, reference_of(family).isolated(PREFIX, ids, at))
        at += len(ids)
    with torch.inference_mode():
        output = reference.model(
            input_ids=torch.tensor([CHUNK]),
            position_ids=torch.arange(at, at + len(CHUNK))[None],
            past_key_values=cache,
            use_cache=True,
            output_attentions=True,
        )
    keys, values = reference.kv(cache)
    return [layer[0] for layer in output.attentions], (keys[:, :, at:], values[:, :, at:])


def segment_sums(attention: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[list[float]]:
    """Each token's attention to each segment, mean over layers and heads, by loops."""
    edges = [0, *accumulate(sizes)]
    shares = []
    for token in range(len(CHUNK)):
        rows = [head[token].tolist() for layer in attention for head in layer]
        shares.append(
            [sum(sum(row[low:high]) for row in rows) / len(rows) for low, high in pairwise(edges)]
        )
    return shares


def check(trace: ContextTrace, attention: Sequence[torch.Tensor], sizes: Sequence[int]) -> None:
    shares = segment_sums(attention, [len(PREFIX), *sizes, len(CHUNK)])
    assert trace.outside == pytest.approx([sum(s[1:-1]) for s in shares], abs=1e-4)
    assert trace.inside == pytest.approx([s[-1] for s in shares], abs=1e-4)
    by_neighbour = [sum(s[1 + i] for s in shares) / len(CHUNK) for i in range(len(sizes))]
    assert trace.by_neighbour == pytest.approx(by_neighbour, abs=1e-4)
    prefix = [1 - o - i for o, i in zip(trace.outside, trace.inside, strict=True)]
    assert prefix == pytest.approx([s[0] for s in shares], abs=1e-4)  # all shares make 1
    assert min(map(min, zip(trace.outside, trace.inside, strict=True))) >= 0.0


@families
def test_attention_behind_one_neighbour_is_the_dense_models(family: str) -> None:
    """A first neighbour's isolated KV stands where it was made: the dense model sees the same."""
    neighbour = CHUNKS[0]
    _, trace = traced(family, [neighbour])
    dense = Reference(build(family)).model
    dense.set_attn_implementation("eager")
    with torch.inference_mode():
        ids = torch.tensor([(*PREFIX, *neighbour, *CHUNK)])
        attention = dense(ids, output_attentions=True).attentions
    start = len(PREFIX) + len(neighbour)
    check(trace, [layer[0, :, start:] for layer in attention], [len(neighbour)])
    assert (trace.neighbours, trace.neighbour_tokens) == (("aa",), len(neighbour))


@families
def test_attention_behind_two_neighbours_is_told_apart(family: str) -> None:
    first, second = CHUNKS[:2]
    _, trace = traced(family, [first, second])
    attention, _ = eager(family, [first, second])
    check(trace, attention, [len(first), len(second)])
    assert trace.neighbours == NAMES
    assert trace.neighbour_tokens == len(first) + len(second)
    assert len(trace.sensitivity) == len(trace.outside) == len(trace.inside) == len(CHUNK)


def test_more_neighbours_than_a_head_is_wide() -> None:
    model, ids = model_of("llama_gqa2"), CHUNKS[0] + CHUNKS[1]
    neighbours = [ids[i : i + 2] for i in range(0, 2 * (model.head_dim + 3), 2)]
    before = [isolated(model, pair, f"{i:02x}") for i, pair in enumerate(neighbours)]
    alone, prefix = isolated(model, CHUNK), prefill_prefix(Executor(model), PREFIX)
    _, trace = fuse(model, prefix, alone, before)
    attention, _ = eager("llama_gqa2", neighbours)
    check(trace, attention, [2] * len(neighbours))


def test_windows_cut_off_what_is_far_away() -> None:
    """Most of Gemma's layers see 24 tokens, so the farther neighbour gets the last layers' only."""
    _, trace = traced("gemma3", CHUNKS[:2])
    attention, _ = eager("gemma3", CHUNKS[:2])
    behind_second = len(PREFIX) + len(CHUNKS[0])
    far = [layer[..., :behind_second].sum() for layer in attention]
    assert (far[0], far[2]) == (0.0, 0.0)  # 31 tokens of the second lie between
    assert far[1] > 0.0
    expected = float(attention[1][..., len(PREFIX) : behind_second].sum(-1).mean()) / 3
    assert trace.by_neighbour[0] == pytest.approx(expected, abs=1e-5)


@families
@pytest.mark.parametrize("count", [1, 2])
def test_sensitivity_is_how_far_the_kv_moved(family: str, count: int) -> None:
    """By loops, at the chunk's true positions: turning keys changes no distance and no size."""
    neighbours = CHUNKS[:count]
    fused, trace = traced(family, neighbours)
    start = len(PREFIX) + sum(map(len, neighbours))
    _, behind = eager(family, neighbours)
    alone = reference_of(family).isolated(PREFIX, CHUNK, start)
    expected = [0.0] * len(CHUNK)
    layers = model_of(family).num_layers
    for now, then in zip(behind, alone, strict=True):  # keys, then values
        for layer in range(layers):
            old = [then[layer, :, t].flatten().tolist() for t in range(len(CHUNK))]
            size = sum(x * x for token in old for x in token) / len(CHUNK)
            for t, token in enumerate(old):
                new = now[layer, :, t].flatten().tolist()
                moved = sum((x - y) ** 2 for x, y in zip(new, token, strict=True))
                expected[t] += moved / size / (2 * layers)
    assert trace.sensitivity == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert min(trace.sensitivity) > 0.0
    assert fused.neighbours == trace.neighbours


def test_a_token_that_sees_nothing_of_the_neighbours_does_not_move() -> None:
    """Windows of 24 tokens: from the 24th on a token looks at its own chunk alone, and from the
    47th on, two layers deep, its KV knows nothing else either.
    """
    model, chunk = model_of("mistral_window"), tokens(9, 60)
    alone, neighbour = isolated(model, chunk), isolated(model, CHUNKS[0], "aa")
    _, trace = fuse(model, prefill_prefix(Executor(model), PREFIX), alone, [neighbour])
    assert min(trace.outside[:23]) > 0.0
    assert trace.outside[23:] == (0.0,) * 37
    assert trace.inside[23:] == pytest.approx([1.0] * 37)
    assert min(trace.sensitivity[:40]) > 1e-7
    assert max(trace.sensitivity[46:]) < 1e-9


@families
def test_separators_stand_behind_each_neighbour(family: str) -> None:
    """Where they see what is before them, and are seen, but belong to no neighbour."""
    model, gap = model_of(family), (7, 11)
    executor = Executor(model)
    neighbours = CHUNKS[:2]
    before = [isolated(model, ids, key) for ids, key in zip(neighbours, NAMES, strict=True)]
    fusion = Fusion("cc", isolated(model, CHUNK), tuple(before))
    ((fused, trace),) = fuse_chunks(executor, prefill_prefix(executor, PREFIX), [fusion], gap)
    reference = Reference(build(family))
    cache, at = reference.new_cache(), len(PREFIX)
    reference.feed(cache, PREFIX, 0)
    for ids in neighbours:
        reference.append(cache, reference_of(family).isolated(PREFIX, ids, at))
        reference.feed(cache, gap, at + len(ids))
        at += len(ids) + len(gap)
    reference.feed(cache, CHUNK, at)
    keys, values = reference.kv(cache)
    at_home = rotate(fused.keys, model.rotation(range(at, at + len(CHUNK))))
    torch.testing.assert_close(at_home, keys[:, :, at:], **TOLERANCE)
    torch.testing.assert_close(fused.values, values[:, :, at:], **TOLERANCE)
    assert len(trace.by_neighbour) == 2
    assert sum(trace.by_neighbour) == pytest.approx(sum(trace.outside) / len(CHUNK), abs=1e-5)
    assert trace.neighbour_tokens == sum(map(len, neighbours))
    assert max(o + i for o, i in zip(trace.outside, trace.inside, strict=True)) < 1.0


@families
def test_what_was_given_stays_as_it_was(family: str) -> None:
    model = model_of(family)
    given = [
        prefill_prefix(Executor(model), PREFIX),
        isolated(model, CHUNK),
        isolated(model, CHUNKS[0]),
    ]
    before = [(kv.keys.clone(), kv.values.clone()) for kv in given]
    prefix, alone, neighbour = given
    fuse(model, prefix, alone, [neighbour])
    for kv, (keys, values) in zip(given, before, strict=True):
        assert torch.equal(kv.keys, keys)
        assert torch.equal(kv.values, values)


@pytest.mark.parametrize("wrong", ["sensitivity", "outside", "inside", "by_neighbour"])
def test_a_trace_needs_a_number_for_each(wrong: str) -> None:
    _, trace = traced("llama_gqa2", CHUNKS[:1])
    with pytest.raises(InvalidInputError, match="A trace needs"):
        replace(trace, **{wrong: getattr(trace, wrong)[:-1]})


@families
def test_chunks_of_one_pass_know_nothing_of_each_other(family: str) -> None:
    """Each as if it were alone, whatever its length and its neighbours'."""
    model = model_of(family)
    executor = Executor(model)
    prefix = prefill_prefix(executor, PREFIX)
    together = prefill_chunks(executor, prefix, dict(zip(("aa", "bb", "cc"), CHUNKS, strict=True)))
    assert [kv.key for kv in together] == ["aa", "bb", "cc"]
    for kv, ids in zip(together, CHUNKS, strict=True):
        same(kv, isolated(model, ids, kv.key))

    first, second, third = together
    fusions = [Fusion("dd", first, (second, third)), Fusion("ee", third, (first,))]
    for (kv, trace), fusion in zip(fuse_chunks(executor, prefix, fusions), fusions, strict=True):
        ((alone, told),) = fuse_chunks(executor, prefix, [fusion])
        same(kv, alone)
        assert kv.neighbours == trace.neighbours == tuple(n.key for n in fusion.neighbours)
        assert trace.outside == pytest.approx(told.outside, abs=1e-5)
        assert trace.sensitivity == pytest.approx(told.sensitivity, rel=1e-3, abs=1e-5)


def same(kv: ChunkKV, expected: ChunkKV) -> None:
    assert (kv.key, kv.kind, kv.token_ids) == (expected.key, expected.kind, expected.token_ids)
    torch.testing.assert_close(kv.keys, expected.keys, **TOLERANCE)
    torch.testing.assert_close(kv.values, expected.values, **TOLERANCE)


def test_no_chunks_are_no_work() -> None:
    model = model_of("llama_gqa2")
    executor = Executor(model)
    assert fuse_chunks(executor, prefill_prefix(executor, PREFIX), []) == []
