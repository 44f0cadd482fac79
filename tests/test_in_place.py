"""Requests over chunks that stay where they are, against the same over placed chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.memory import tensor_bytes_since, tensor_storages
from fusionrag_integrations.attention.rope import RotaryTable, Rotation, rotate
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.buffer import KVBuffer
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.in_place import InPlaceKV
from fusionrag_integrations.execution.placement import (
    PromptKV,
    SharedChunks,
    place,
    place_in_buffer,
    to_resident,
)
from fusionrag_integrations.execution.recompute import PlacedPrompt, PrefillOutput
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.attention_weights import weights
from fusionrag_integrations.selectors.selection import TokenSelection
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.kv.types import ChunkKV
from tests.test_gates import (
    CHUNKS,
    PREFIX,
    SUFFIX,
    TOLERANCE,
    isolated,
    model_of,
    prompt_of_chunks,
    reference_of,
    span,
    tokens,
    varied_families,
)

ANSWER = tokens(5, 4)
CPU = torch.device("cpu")


def residents(model: CausalModel) -> list[ChunkKV]:
    return [to_resident(model, isolated(model, ids)) for ids in CHUNKS]


def adjacent() -> AssembledPrompt:
    """Chunks one behind another: nothing separates them."""
    ids, spans = list(PREFIX), []
    for chunk in CHUNKS:
        spans.append(span(chunk, len(ids)))
        ids += chunk
    return AssembledPrompt((*ids, *SUFFIX), tuple(spans), (len(ids), len(ids) + len(SUFFIX)))


def selections(prompt: AssembledPrompt) -> Iterator[TokenSelection]:
    positions = prompt.chunk_positions
    for chosen in ((), positions[3::5], positions[:9], positions):
        yield TokenSelection(chosen)


def answered(
    model: CausalModel, warm: PrefillOutput, prompt: AssembledPrompt
) -> list[torch.Tensor]:
    step = Executor(model).appender(warm.kv, len(prompt))
    return [warm.logits[0], *map(step, ANSWER)]


@varied_families
def test_turn_tables_are_the_models_own_turn(family: str) -> None:
    """Partial, interleaved and scaled rotary embeddings, forwards and backwards."""
    model = model_of(family)
    keys = torch.randn(model.kv_layers, model.num_kv_heads, 4, model.head_dim)
    rotation = model.rotation((0, 3, 77, -2))
    turns = RotaryTable.of(rotation, model.head_dim)
    for turn, sign in ((rotation, 1.0), (rotation.inverse(), -1.0)):
        expected = rotate(keys, turn)
        for layer in range(model.kv_layers):
            cos, sin = turns.layer(layer)
            turned = keys[layer] * cos + keys[layer][..., turns.other] * (sign * sin)
            torch.testing.assert_close(turned, expected[layer], rtol=1e-5, atol=1e-6)


@varied_families
def test_in_place_is_as_placed(family: str) -> None:
    """Logits of the prompt and of an answer, whatever is selected."""
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    kvs, there = [isolated(model, ids) for ids in CHUNKS], residents(model)
    capacity = len(prompt) + len(ANSWER)
    for selection in selections(prompt):
        shared = place(executor, prompt, there, capacity)
        assert isinstance(shared, SharedChunks)
        placed = place_in_buffer(executor, prompt, kvs, capacity)
        warm, expected = (
            PlacedPrompt(executor, prompt, kv).recompute(selection) for kv in (shared, placed)
        )
        assert isinstance(warm.kv, InPlaceKV)
        both = zip(answered(model, warm, prompt), answered(model, expected, prompt), strict=True)
        for found, wanted in both:
            torch.testing.assert_close(found, wanted, **TOLERANCE)


@varied_families
def test_everything_of_its_own_is_dense_prefill(family: str) -> None:
    """Gate 1 where every token of every segment is stale."""
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    shared = place(executor, prompt, residents(model), len(prompt))
    warm = PlacedPrompt(executor, prompt, shared).recompute(TokenSelection(prompt.chunk_positions))
    expected, _ = reference_of(family).dense(prompt.token_ids)
    torch.testing.assert_close(warm.logits[0], expected[-1], **TOLERANCE)


@pytest.mark.parametrize("family", ["llama_gqa2", "gemma3", "phi3_partial", "glm4"])
def test_selectors_see_the_same(family: str) -> None:
    model, prompt = model_of(family), adjacent()
    executor = Executor(model)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    every = range(model.num_layers)
    probes = (
        PlacedPrompt(executor, prompt, place(executor, prompt, given, len(prompt)))
        for given in (residents(model), kvs)
    )
    views = zip(*(probe.suffix(every) for probe in probes), strict=True)
    for found, expected in views:
        torch.testing.assert_close(weights(found), weights(expected), **TOLERANCE)
        assert found.window == expected.window


@varied_families
def test_watched_tokens_are_off_by_the_same(family: str) -> None:
    """And nothing is written to what requests share."""
    model, prompt = model_of(family), adjacent()
    executor = Executor(model)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    watched = [chunk[place] for chunk in prompt.positions_by_chunk for place in (0, 3)]
    layers = range(model.num_layers)
    found, expected = (
        PlacedPrompt(executor, prompt, place(executor, prompt, given, len(prompt))).watched_suffix(
            layers, watched
        )
        for given in (residents(model), kvs)
    )
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-5)
    for view, other in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(weights(view), weights(other), **TOLERANCE)


@varied_families
def test_early_layers_over_the_whole_prompt(family: str) -> None:
    """CacheBlend computes every token in two layers, which is done in a buffer."""
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    selection = TokenSelection(prompt.chunk_positions[3::7])
    logits, deviations = [], []
    for given in (residents(model), kvs):
        probe = PlacedPrompt(executor, prompt, place(executor, prompt, given, len(prompt)))
        deviations.append(probe.early_deviation())
        warm = probe.recompute(selection)
        assert isinstance(warm.kv, KVBuffer)
        logits.append(warm.logits[0])
    torch.testing.assert_close(*deviations, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(*logits, **TOLERANCE)


@varied_families
def test_requests_share_what_they_never_change(family: str) -> None:
    """The same chunks at different places of two prompts, taken turns with."""
    model = model_of(family)
    executor = Executor(model)
    there = residents(model)
    before = [(kv.keys.clone(), kv.values.clone()) for kv in there]
    prompts = (prompt_of_chunks(), adjacent())

    def warm(prompt: AssembledPrompt, kind: Callable[..., PromptKV]) -> PrefillOutput:
        kv = kind(executor, prompt, there, len(prompt) + len(ANSWER))
        selection = TokenSelection(prompt.chunk_positions[2::6])
        return PlacedPrompt(executor, prompt, kv).recompute(selection)

    warmed = [warm(prompt, place) for prompt in prompts]
    steps = [executor.appender(w.kv, len(p)) for w, p in zip(warmed, prompts, strict=True)]
    found = [[w.logits[0]] for w in warmed]
    for token in ANSWER:
        for logits, step in zip(found, steps, strict=True):
            logits.append(step(token))
    for prompt, logits in zip(prompts, found, strict=True):
        alone = answered(model, warm(prompt, place_in_buffer), prompt)
        for mine, expected in zip(logits, alone, strict=True):
            torch.testing.assert_close(mine, expected, **TOLERANCE)
    for kv, (keys, values) in zip(there, before, strict=True):
        assert torch.equal(kv.keys, keys)
        assert torch.equal(kv.values, values)


@varied_families
def test_resident_kv_can_be_placed(family: str) -> None:
    """Where one chunk of several isn't there, all are placed."""
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    mixed = [to_resident(model, kvs[0]), kvs[1], to_resident(model, kvs[2])]
    shared = place(executor, prompt, mixed, len(prompt))
    assert isinstance(shared, KVBuffer)
    expected = place_in_buffer(executor, prompt, kvs, len(prompt))
    torch.testing.assert_close(
        shared.keys[:, :, list(prompt.chunk_positions)],
        expected.keys[:, :, list(prompt.chunk_positions)],
        **TOLERANCE,
    )


def test_a_request_holds_its_own_tokens_and_little_more() -> None:
    """Over chunks that others hold already: at most 5% beside the KV of its own tokens.

    In the true proportion of heads to positions: 27,000 tokens in the shape of Qwen2.5-7B, one
    layer of its 28 (the rest of what is held is there once, so it weighs 28 times as much here).
    """
    layers, heads, size, chunk = 1, 4, 128, 256
    half = {"dtype": torch.bfloat16}
    kv = ChunkKV(
        "aa",
        "isolated",
        tuple(range(chunk)),
        torch.empty(layers, heads, chunk, size, **half),
        torch.empty(layers, heads, chunk, size, **half),
        rotated=True,
    )
    ids = tuple(range(chunk))
    spans = tuple(span(ids, 20 + i * (chunk + 2)) for i in range(105))
    stop = spans[-1].stop
    prompt = AssembledPrompt(tuple(range(stop + 50)), spans, (stop, stop + 50))

    class Shape:
        device, num_layers, head_dim = CPU, layers, size

        def rotation(self, positions: list[int]) -> Rotation:
            angles = torch.tensor(positions)[None, :, None] * torch.ones(size)
            return Rotation(angles.cos(), angles.sin(), rotated)

    own = sorted({*prompt.fresh_positions, *prompt.chunk_positions[::7]})
    before = tensor_storages(CPU)
    shared = place(SimpleNamespace(model=Shape()), prompt, [kv] * len(spans), stop + 306)  # type: ignore[arg-type]
    held = shared.with_private_tokens([*own, *range(len(prompt), shared.capacity)])
    beyond = tensor_bytes_since(before, CPU) - (len(own) + 256) * 2 * layers * heads * size * 2
    assert isinstance(held, InPlaceKV)
    assert 0 < beyond < 0.05 * 28 * (len(own) + 256) * 2 * layers * heads * size * 2


def rotated(
    queries: torch.Tensor, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Halves, as Llama rotates them."""
    one, other = keys.chunk(2, dim=-1)
    return queries, keys * cos[:, None] + torch.cat((-other, one), -1) * sin[:, None]


def test_rotated_kv_is_not_stored(tmp_path: Path) -> None:
    kv = replace(isolated(model_of("llama_gqa2"), CHUNKS[0], "aa"), rotated=True)
    with pytest.raises(InvalidInputError, match="unrotated"):
        RecordStore(LocalKVFiles(tmp_path), "-", "float32").put(kv)


def test_rows_of_own_tokens_are_found() -> None:
    """Slots count own tokens, whatever lies between them."""
    model, prompt = model_of("llama_gqa2"), prompt_of_chunks()
    shared = place(Executor(model), prompt, residents(model), len(prompt) + 1)
    own = [*prompt.fresh_positions, len(prompt)]
    rows = Rows.at(own[3:5], CPU)
    part = shared.with_private_tokens(own).over(rows)
    new = torch.ones(model.num_kv_heads, 2, model.head_dim)
    part.batch([part]).write(1, new, new)
    assert (part.layer(1)[0][:, own[3:5]] == 1.0).all()
    assert not part.layer(1)[0][:, own[:3]].any()
