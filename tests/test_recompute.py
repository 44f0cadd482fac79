"""What the probe says, and what is not computed twice; the gates check everything else."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from fusionrag_integrations.execution.buffer import KVBuffer
from fusionrag_integrations.execution.executor import Executor, SequenceInput
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.placement import (
    MAX_SEPARATOR_TOKENS,
    place,
    place_in_buffer,
    to_resident,
)
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.attention_weights import weights
from fusionrag_integrations.selectors.selection import TokenSelection
from fusionrag_integrations.store.kv.types import ChunkKV
from tests.reference import Reference
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
    varied_families,
)
from tests.tiny_models import build

PROMPT_IDS = (*PREFIX, *CHUNKS[0], *SUFFIX)
STOP = len(PREFIX) + len(CHUNKS[0])
PROMPT = AssembledPrompt(
    PROMPT_IDS, (span(CHUNKS[0], len(PREFIX)),), question=(STOP, len(PROMPT_IDS))
)


def placed(model: CausalModel) -> tuple[PlacedPrompt, KVBuffer]:
    executor = Executor(model)
    buffer = place_in_buffer(executor, PROMPT, [isolated(model, CHUNKS[0])], len(PROMPT))
    return PlacedPrompt(executor, PROMPT, buffer), buffer


@pytest.mark.parametrize("family", ["llama_gqa2", "qwen3", "phi3_partial", "glm4", "gemma3"])
def test_views_give_the_models_own_attention(family: str) -> None:
    """The chunk stands where it was made, so the dense model's weights are what must come out."""
    prompt, _ = placed(CausalModel(build(family), None, family))
    dense = Reference(build(family)).model
    dense.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = dense(torch.tensor([PROMPT_IDS]), output_attentions=True).attentions
    every = range(prompt.num_layers)
    for layer, view in zip(every, prompt.suffix(every), strict=True):  # Gemma's windows among them
        assert view.positions.tolist() == list(range(STOP, len(PROMPT)))
        torch.testing.assert_close(weights(view), expected[layer][0, :, STOP:], **TOLERANCE)


def test_a_view_stops_at_the_window() -> None:
    model = CausalModel(build("gemma3"), None, "gemma3")
    prompt, _ = placed(model)
    assert model.global_layers == (1,)
    windowed, whole = prompt.suffix([0, 1])
    assert whole.window is None
    assert windowed.window < len(PROMPT)  # type: ignore[operator]


def test_separators_of_chunks_are_not_looked_with() -> None:
    """They stand as zeros until they are computed; a longer run of fresh tokens is run."""
    model, prompt = model_of("llama_gqa2"), prompt_of_chunks()
    executor = Executor(model)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    gaps = [range(b.stop, a.start) for b, a in pairwise(prompt.spans)]
    between = [position for gap in gaps for position in gap]
    assert between
    assert all(len(gap) <= MAX_SEPARATOR_TOKENS for gap in gaps)
    buffer = place_in_buffer(executor, prompt, kvs, len(prompt))
    assert not buffer.keys[:, :, between].any()
    assert not buffer.values[:, :, between].any()
    probe = PlacedPrompt(executor, prompt, buffer)
    probe.suffix([1])
    assert probe.token_layers == 2 * (len(prompt.fresh_positions) - len(between))
    assert not buffer.keys[:, :, between].any()

    missed = replace(prompt, spans=(prompt.spans[0], *prompt.spans[2:]))  # a chunk is unknown
    probe = PlacedPrompt(
        executor,
        missed,
        place_in_buffer(executor, missed, [kvs[0], *kvs[2:]], len(prompt)),
    )
    probe.suffix([1])
    kept = [gap for gap in gaps if gap.start > prompt.spans[1].stop]
    run = len(missed.fresh_positions) - sum(map(len, kept))
    assert probe.token_layers == 2 * run


def test_looking_stops_behind_the_last_layer_asked_for() -> None:
    model = CausalModel(build("llama_gqa2"), None, "tiny")
    prompt, buffer = placed(model)
    upper = buffer.keys[2:].nan_to_num()  # what is undefined may be no number
    prompt.suffix([1, 0])
    assert torch.equal(buffer.keys[2:].nan_to_num(), upper)
    assert prompt.token_layers == 2 * len(PROMPT.fresh_positions)
    assert prompt.probe_ms > 0.0


class TestWatchedTokens:
    """Chunk tokens that run with the suffix, to see what their placed KV is off by."""

    @varied_families
    def test_what_they_are_off_by(self, family: str) -> None:
        """Beside a pass over the same rows that keeps what it computes."""
        model, prompt = model_of(family), prompt_of_chunks()
        executor = Executor(model)
        kvs = [isolated(model, ids) for ids in CHUNKS]
        watched = [prompt.spans[0].start + 2, prompt.spans[1].start, prompt.spans[2].stop - 1]
        layers = [1, model.num_layers - 1]
        _, off = PlacedPrompt(
            executor, prompt, place_in_buffer(executor, prompt, kvs, len(prompt))
        ).watched_suffix(layers, watched)
        buffer = place_in_buffer(executor, prompt, kvs, len(prompt))
        stale = buffer.keys.clone(), buffer.values.clone()
        rows = sorted({*prompt.fresh_positions, *watched})
        executor.forward_rows([prompt.token_ids[p] for p in rows], rows, buffer)
        assert len(off) == model.num_layers
        for layer, found in enumerate(off):
            shares = []
            for new, old in zip((buffer.keys, buffer.values), stale, strict=True):
                source = model.layout.shape.sources[layer]
                new, old = new[source, :, watched], old[source, :, watched]
                shares.append((new - old).square().sum((0, 2)) / new.square().sum((0, 2)))
            torch.testing.assert_close(found, (shares[0] + shares[1]) / 2, rtol=1e-3, atol=1e-5)
            assert layer == 0 or found.min() > 0.0

    def test_nothing_is_off_where_kv_is_true(self) -> None:
        """The chunk stands where it was made."""
        prompt, _ = placed(CausalModel(build("llama_gqa2"), None, "tiny"))
        _, off = prompt.watched_suffix([0, 2], [len(PREFIX), len(PREFIX) + 3])
        torch.testing.assert_close(off, torch.zeros(3, 2), rtol=0.0, atol=1e-9)

    @varied_families
    def test_their_placed_kv_stands_again(self, family: str) -> None:
        model, prompt = model_of(family), prompt_of_chunks()
        executor = Executor(model)
        kvs = [isolated(model, ids) for ids in CHUNKS]
        buffer = place_in_buffer(executor, prompt, kvs, len(prompt))
        chunks = list(prompt.chunk_positions)
        before = buffer.keys[:, :, chunks].clone(), buffer.values[:, :, chunks].clone()
        probe = PlacedPrompt(executor, prompt, buffer, corrected=True)
        views, _ = probe.watched_suffix(range(model.num_layers), chunks[5:25:7])
        assert torch.equal(buffer.keys[:, :, chunks], before[0])
        assert torch.equal(buffer.values[:, :, chunks], before[1])
        assert all(len(view.positions) == len(prompt) - prompt.spans[-1].stop for view in views)

    @varied_families
    def test_shared_chunks_are_as_placed_ones(self, family: str) -> None:
        model, prompt = model_of(family), prompt_of_chunks()
        executor = Executor(model)
        kvs = [isolated(model, ids) for ids in CHUNKS]
        there = [to_resident(model, kv) for kv in kvs]
        kept = [(kv.keys.clone(), kv.values.clone()) for kv in there]
        watched = prompt.chunk_positions[5:25:7]
        probes = [
            PlacedPrompt(
                executor,
                prompt,
                place(executor, prompt, given, len(prompt)),
                corrected=True,
            )
            for given in (there, kvs)
        ]
        found, expected = (probe.watched_suffix([1, 2], watched) for probe in probes)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-5)
        for view, wanted in zip(found[0], expected[0], strict=True):
            torch.testing.assert_close(weights(view), weights(wanted), **TOLERANCE)
        selection = TokenSelection(watched)
        logits = [probe.recompute(selection).logits for probe in probes]
        torch.testing.assert_close(*logits, **TOLERANCE)
        for kv, (keys, values) in zip(there, kept, strict=True):
            assert torch.equal(kv.keys, keys)
            assert torch.equal(kv.values, values)

    @varied_families
    def test_what_stands_before_the_first_chunk_is_not_computed_again(self, family: str) -> None:
        model, prompt = model_of(family), prompt_of_chunks()
        executor = Executor(model)
        kvs = [isolated(model, ids) for ids in CHUNKS]
        beginning = prompt.spans[0].start
        selection = TokenSelection(prompt.chunk_positions[3::7])
        layers = range(model.num_layers)
        looked, other, plain = (
            PlacedPrompt(executor, prompt, place_in_buffer(executor, prompt, kvs, len(prompt)))
            for _ in range(3)
        )
        looked.watched_suffix(layers, prompt.chunk_positions[:2])
        other.copy_prefix(looked)
        before = looked.token_layers
        expected = plain.recompute(selection).logits
        torch.testing.assert_close(looked.recompute(selection).logits, expected, **TOLERANCE)
        torch.testing.assert_close(other.recompute(selection).logits, expected, **TOLERANCE)
        saved = beginning * model.num_layers
        assert looked.token_layers - before == plain.token_layers - saved
        assert other.token_layers == plain.token_layers - saved

    def test_it_is_where_not_all_layers_were_asked_for(self) -> None:
        model, prompt = model_of("llama_gqa2"), prompt_of_chunks()
        executor = Executor(model)
        kvs = [isolated(model, ids) for ids in CHUNKS]
        looked, plain = (
            PlacedPrompt(executor, prompt, place_in_buffer(executor, prompt, kvs, len(prompt)))
            for _ in range(2)
        )
        looked.watched_suffix([0], prompt.chunk_positions[:2])
        before = looked.token_layers
        selection = TokenSelection(prompt.chunk_positions[3::7])
        expected = plain.recompute(selection).logits
        torch.testing.assert_close(looked.recompute(selection).logits, expected, **TOLERANCE)
        assert looked.token_layers - before == plain.token_layers

    def test_they_count_as_work_up_to_the_last_layer_asked_for(self) -> None:
        prompt, buffer = placed(CausalModel(build("llama_gqa2"), None, "tiny"))
        upper = buffer.keys[2:].nan_to_num()
        prompt.watched_suffix([1, 0], [len(PREFIX)])
        assert torch.equal(buffer.keys[2:].nan_to_num(), upper)
        assert prompt.token_layers == 2 * (len(PROMPT.fresh_positions) + 1)


@varied_families
def test_lower_then_upper_layers_are_the_model(family: str) -> None:
    model = model_of(family)
    executor = Executor(model)
    ids = (*PREFIX, *CHUNKS[1], *SUFFIX)
    every = range(len(ids))
    whole, parts = executor.new_buffer(len(ids)), executor.new_buffer(len(ids))
    (expected,) = executor.forward_rows(ids, every, whole)
    for depth in range(model.num_layers + 1):
        parts.keys[:, :, :5] = whole.keys[:, :, :5]  # these go no higher than `depth`
        parts.values[:, :, :5] = whole.values[:, :, :5]
        (hidden,) = executor.run([SequenceInput(ids, every, parts, depth=depth)])
        above = SequenceInput(ids[5:], every[5:], parts, hidden=hidden[5:], first=depth, last=1)
        ((logits,),) = executor.run([above])
        torch.testing.assert_close(logits, expected, **TOLERANCE)
        for layer in range(min(depth, model.kv_layers)):
            torch.testing.assert_close(parts.keys[layer], whole.keys[layer], **TOLERANCE)
        parts.keys[:, :, 5:] = torch.nan  # nothing of one depth may help the next
        parts.values[:, :, 5:] = torch.nan


class Late:
    """KV that is always still on its way, and there when it is waited for."""

    def __init__(self, kv: ChunkKV) -> None:
        self._kv = kv

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    def ready(self, layers: slice) -> bool:
        return False


def test_whoever_reads_first_waits_for_layers_that_are_on_their_way() -> None:
    """In whatever mode: the caller of `keys` is outside of the model's passes."""
    model, prompt = model_of("llama_gqa2"), prompt_of_chunks()
    kvs = [isolated(model, ids) for ids in CHUNKS]
    buffers = [
        place_in_buffer(Executor(model), prompt, given, len(prompt))
        for given in ([*map(Late, kvs)], kvs)
    ]
    chunks = list(prompt.chunk_positions)
    for read in (lambda b: b.keys, lambda b: b.values, lambda b: b.layer(1)[0]):
        found, expected = (read(buffer)[..., chunks, :] for buffer in buffers)
        assert torch.equal(found, expected)


def test_every_signal_waits_for_layers_that_are_on_their_way() -> None:
    model, prompt = model_of("llama_gqa2"), prompt_of_chunks()
    executor = Executor(model)
    late = [Late(isolated(model, ids)) for ids in CHUNKS]
    watched = prompt.chunk_positions[5:25:7]
    for look in (
        PlacedPrompt.early_deviation,
        lambda probe: probe.suffix([2])[0].keys,
        lambda probe: probe.watched_suffix([2], watched)[1],
    ):
        found, expected = (
            look(
                PlacedPrompt(
                    executor,
                    prompt,
                    place_in_buffer(executor, prompt, kvs, len(prompt)),
                )
            )
            for kvs in (late, [isolated(model, ids) for ids in CHUNKS])
        )
        torch.testing.assert_close(found, expected, **TOLERANCE)


@varied_families
def test_recomputation_goes_on_behind_the_early_layers(family: str) -> None:
    """As if layers 0 and 1 had run over the whole prompt, and the rest over the selected tokens."""
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    selection = TokenSelection(prompt.chunk_positions[3::7])
    buffer = place_in_buffer(executor, prompt, kvs, len(prompt))
    by_hand = KVBuffer(buffer.keys.clone(), buffer.values.clone())
    early = PlacedPrompt(executor, prompt, buffer)
    early.early_deviation()
    logits = early.recompute(selection).logits[0]
    rows = sorted({*prompt.fresh_positions, *selection.positions})
    assert early.token_layers == 2 * len(prompt) + (model.num_layers - 2) * len(rows)

    dense = executor.new_buffer(len(prompt))
    executor.forward_rows(prompt.token_ids, range(len(prompt)), dense)
    by_hand.keys[:2], by_hand.values[:2] = dense.keys[:2], dense.values[:2]
    (expected,) = executor.forward_rows([prompt.token_ids[p] for p in rows], rows, by_hand)
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    torch.testing.assert_close(buffer.keys, by_hand.keys, **TOLERANCE)


@varied_families
def test_early_deviation_against_a_loop(family: str) -> None:
    model, prompt = model_of(family), prompt_of_chunks()
    executor = Executor(model)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    buffer = place_in_buffer(executor, prompt, kvs, len(prompt))
    stale = KVBuffer(buffer.keys.clone(), buffer.values.clone())
    scores = PlacedPrompt(executor, prompt, buffer).early_deviation()
    _, (keys, values) = reference_of(family).dense(prompt.token_ids)
    expected = []
    for position in prompt.chunk_positions:
        moved = [keys[1, :, position] - stale.keys[1, :, position]]
        moved.append(values[1, :, position] - stale.values[1, :, position])
        expected.append(sum(float(x) ** 2 for m in moved for x in m.flatten()))
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-3, atol=1e-4)


def test_a_prompt_without_chunks_is_computed_whole() -> None:
    model = CausalModel(build("llama_gqa2"), None, "tiny")
    executor = Executor(model)
    prompt = AssembledPrompt(PROMPT_IDS, (), (0, len(PROMPT_IDS)))
    buffer = place_in_buffer(executor, prompt, [], len(prompt))
    logits = PlacedPrompt(executor, prompt, buffer).recompute(TokenSelection(())).logits[0]
    expected, _ = Reference(build("llama_gqa2")).dense(PROMPT_IDS)
    torch.testing.assert_close(logits, expected[-1], **TOLERANCE)
