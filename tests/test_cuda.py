"""The same gates on a GPU, where there is one: plain PyTorch gives there what it gives here."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fusionrag_integrations import AnswerSettings
from fusionrag_integrations.bench.served import Tier, invented_store, served_prompt
from fusionrag_integrations.execution.buffer import SequenceKV
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.placement import (
    SharedChunks,
    place,
    place_in_buffer,
    to_resident,
)
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.execution.steps import EAGER_STEPS, DecodeRow, DecodeSteps
from fusionrag_integrations.selectors.selection import TokenSelection
from fusionrag_integrations.serving.alone import answer_alone
from fusionrag_integrations.store.kv.types import KVFormat
from tests.reference import Reference
from tests.test_gates import CHUNKS, distance, isolated, prompt_of_chunks, tokens, warm
from tests.tiny_models import COMMON, FACTORIES, build, heads
from tests.tiny_tokenizers import byte_level_tokenizer

ANSWER = tokens(5, EAGER_STEPS + 4)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FACTORIES)
def test_recompute_everything_is_dense_prefill(family: str, dtype: torch.dtype) -> None:
    model, prompt = cuda(family, dtype), prompt_of_chunks()
    kvs = [isolated(model, ids) for ids in CHUNKS]
    found = warm(model, prompt, kvs, prompt.chunk_positions)
    exact_logits, exact = Reference(build(family)).dense(prompt.token_ids)
    own_logits, own = Reference(build(family, dtype).to("cuda")).dense(prompt.token_ids)
    for mine, its, true in zip(
        found, (own_logits[-1], *own), (exact_logits[-1], *exact), strict=True
    ):
        # In bf16 as far off as the model itself is, whose weights are rounded.
        allowed = 1e-3 if dtype == torch.float32 else 1.5 * distance(its.cpu(), true)
        assert distance(mine.cpu(), true) < allowed


def test_the_signature_is_that_of_the_same_weights_on_a_cpu() -> None:
    """Some are longer than what is copied at a time."""
    torch.manual_seed(0)
    vocabulary = 1_500_000  # 96 MB of embeddings
    config = LlamaConfig(**COMMON | {"vocab_size": vocabulary, "hidden_size": 16}, **heads(2, 1))
    model, tokenizer = LlamaForCausalLM(config), byte_level_tokenizer()
    here = CausalModel(model, tokenizer, "tiny").signature("")
    assert CausalModel(model.to("cuda"), tokenizer, "tiny").signature("") == here


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_an_answer_end_to_end(model_dir: Path, tier: Tier) -> None:
    """From wherever its KV lies, on an engine that needs neither an index nor a framework."""
    model = CausalModel.load(model_dir, "cuda", "float32")
    settings = AnswerSettings(kv="isolated", selector="all", max_tokens=8)
    with served_prompt(model, 400, tier, None) as (pipeline, prompt):
        answer = answer_alone(pipeline, prompt, settings)
        full = answer_alone(pipeline, prompt, settings.changed({"kv": "none"}))
        chosen = settings.changed({"selector": "fusionrag", "ratio": 0.15})
        some = answer_alone(pipeline, prompt, chosen)
    assert answer.token_ids == full.token_ids
    assert answer.usage.recomputed_tokens > some.usage.recomputed_tokens > 0
    assert answer.missed_chunks == some.missed_chunks == 0


@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_every_format_is_turned_back_as_on_a_cpu(model_dir: Path, kv_format: KVFormat) -> None:
    """All layers at once, and some of them; then answers from every tier, which are the same."""
    model = CausalModel.load(model_dir, "cuda", "float32")
    settings = AnswerSettings(kv="isolated", selector="fusionrag", ratio=0.15, max_tokens=8)
    answers = []
    with invented_store(model, 400, kv_format) as store:
        for tier in get_args(Tier):
            pipeline = store.pipeline(store.tiers_at(tier))
            answer = answer_alone(pipeline, store.prompt, settings)
            answers.append(answer.token_ids)
            if tier == "device":
                continue
            for kv in pipeline.load_prompt(store.prompt, settings).kvs:
                for layers in (slice(None), slice(1, 3)):
                    found, expected = (
                        kv.tensors(layers, torch.device(name)) for name in ("cuda", "cpu")
                    )
                    for mine, other in zip(found, expected, strict=True):
                        torch.testing.assert_close(mine.cpu(), other, rtol=1e-6, atol=1e-6)
    assert len(set(answers)) == 1


@pytest.mark.parametrize("family", FACTORIES)
def test_kv_that_moves_while_layers_compute(family: str) -> None:
    """From pinned host memory on a stream of its own: what is read is always there already."""
    model, prompt = cuda(family), prompt_of_chunks()
    executor = Executor(model)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    pinned = [
        replace(kv, keys=kv.keys.cpu().pin_memory(), values=kv.values.cpu().pin_memory())
        for kv in kvs
    ]
    selection = TokenSelection(prompt.chunk_positions[3::5])
    for _ in range(5):
        found, expected = (
            PlacedPrompt(
                executor,
                prompt,
                place_in_buffer(executor, prompt, given, len(prompt)),
            ).recompute(selection)
            for given in (pinned, kvs)
        )
        assert distance(found.logits[0], expected.logits[0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FACTORIES)
def test_chunks_where_they_lie(family: str, dtype: torch.dtype) -> None:
    """By the kernel where it knows the heads' size, with an answer's tokens behind the prompt."""
    model, prompt = cuda(family, dtype), prompt_of_chunks()
    executor = Executor(model)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    selection = TokenSelection(prompt.chunk_positions[3::5])
    capacity = len(prompt) + len(ANSWER)
    laid = place(executor, prompt, [to_resident(model, kv) for kv in kvs], capacity)
    assert isinstance(laid, SharedChunks)
    both = []
    for kv in (laid, place_in_buffer(executor, prompt, kvs, capacity)):
        warm = PlacedPrompt(executor, prompt, kv).recompute(selection)
        step = executor.appender(warm.kv, len(prompt))
        both.append([warm.logits[0].clone(), *(step(token).clone() for token in ANSWER)])
    for found, expected in zip(*both, strict=True):
        assert distance(found, expected) < (1e-4 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("family", FACTORIES)
def test_what_recomputed_tokens_carry_over(family: str) -> None:
    """The same as on a CPU, from chunks that lie on the device and stay as they are."""
    model, prompt = cuda(family), prompt_of_chunks()
    executor = Executor(model)
    selection = TokenSelection(prompt.chunk_positions[3::5])
    there = [to_resident(model, isolated(model, ids)) for ids in CHUNKS]
    laid = place(executor, prompt, there, len(prompt))
    found = PlacedPrompt(executor, prompt, laid, corrected=True).recompute(selection).logits[0]
    host = CausalModel(build(family), None, family)
    kvs = [isolated(host, ids) for ids in CHUNKS]
    buffer = place_in_buffer(host, prompt, kvs, len(prompt))
    expected = PlacedPrompt(host, prompt, buffer, corrected=True).recompute(selection).logits[0]
    assert distance(found.cpu(), expected) < 1e-4


@pytest.mark.parametrize("family", FACTORIES)
def test_how_stale_watched_tokens_are(family: str) -> None:
    """The same as on a CPU, from chunks that lie on the device and stay as they are."""
    watched = prompt_of_chunks().chunk_positions[3::9]
    selection = TokenSelection(prompt_of_chunks().chunk_positions[3::5])
    offs, logits = [], []
    for model in (cuda(family), CausalModel(build(family), None, family)):
        prompt, kvs = prompt_of_chunks(), [isolated(model, ids) for ids in CHUNKS]
        there = [to_resident(model, kv) for kv in kvs]
        laid = place(
            Executor(model), prompt, there if model.device.type == "cuda" else kvs, len(prompt)
        )
        placed = PlacedPrompt(Executor(model), prompt, laid, corrected=True)
        _, off = placed.watched_suffix(range(model.num_layers), watched)
        offs.append(off.cpu())
        logits.append(placed.recompute(selection).logits[0].cpu())
    torch.testing.assert_close(*offs, rtol=1e-3, atol=1e-5)
    assert distance(*logits) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "glm4"])  # of a head size of the kernels'
def test_graphs_of_steps_are_steps(
    family: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    """Of requests that come and go, over shared chunks and in buffers, against one at a time."""
    model, prompt = cuda(family, dtype), prompt_of_chunks()
    executor, capacity = Executor(model), len(prompt) + len(ANSWER)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    there = [to_resident(model, kv) for kv in kvs]

    def warmed(every: int) -> SequenceKV:
        placed = place(executor, prompt, there if every % 2 else kvs, capacity)
        selection = TokenSelection(prompt.chunk_positions[3::every])
        return PlacedPrompt(executor, prompt, placed).recompute(selection).kv

    together, alone = ([warmed(every) for every in range(3, 12)] for _ in range(2))
    steps = DecodeSteps(model)
    groups = [range(9), range(9), range(9), range(9), range(4, 9), range(4, 9), (8, 0, 5)]
    done = [0] * 9
    for which in groups:
        rows = [DecodeRow(ANSWER[done[i]], len(prompt) + done[i], together[i]) for i in which]
        for i, logits in zip(which, steps(rows), strict=True):
            at = [len(prompt) + done[i]]
            (expected,) = executor.forward_rows([ANSWER[done[i]]], at, alone[i])
            assert distance(logits, expected) < (1e-4 if dtype == torch.float32 else 5e-2)
            done[i] += 1
    assert steps.graphs == 1  # of nine at once
    assert not [one for one in caplog.records if one.name.startswith("fusionrag")]


def test_requests_on_several_threads_share_their_graphs() -> None:
    model, prompt = cuda("qwen3"), tuple(range(1, 60))
    executor = Executor(model)

    def answer(first: int) -> list[int]:
        buffer = executor.new_buffer(len(prompt) + 40)
        executor.forward_rows(prompt, range(len(prompt)), buffer)
        step, token, said = executor.appender(buffer, len(prompt)), first, []
        for _ in range(30):
            token = int(step(token).argmax())
            said.append(token)
        return said

    alone = [answer(first) for first in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(answer, range(6))) == alone


def cuda(family: str, dtype: torch.dtype = torch.float32) -> CausalModel:
    return CausalModel(build(family, dtype).to("cuda"), None, family)
