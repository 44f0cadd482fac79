"""One more token of each of several requests: over tensors that stay where they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from weakref import ref

import pytest
import torch

from fusionrag_integrations.execution.buffer import KVBuffer, SequenceKV
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.placement import (
    PromptKV,
    SharedChunks,
    place_in_buffer,
    to_resident,
)
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.execution.steps import (
    EAGER_STEPS,
    MOST_GRAPHS,
    DecodeRow,
    DecodeSteps,
    padded_size,
)
from fusionrag_integrations.selectors.selection import TokenSelection
from tests.test_gates import (
    CHUNKS,
    TOLERANCE,
    isolated,
    model_of,
    prompt_of_chunks,
    tokens,
    varied_families,
)

ANSWER = tokens(2, EAGER_STEPS + 2)
PROMPT = prompt_of_chunks()

of_kernel_size = pytest.mark.parametrize("family", ["qwen3", "gemma3", "glm4"])


@pytest.fixture
def in_triton(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called on as on a GPU, by Triton's interpreter where there is none."""
    pytest.importorskip("triton")
    name = "fusionrag_integrations.attention.attend.can_gather"
    return lambda: monkeypatch.setattr(name, lambda device: True)


@dataclass(frozen=True)
class Decoded:
    """A prefilled request, and the logits behind each token of its answer, decoded alone."""

    kv: SequenceKV
    logits: list[torch.Tensor]


def prefilled(executor: Executor, in_place: bool, every: int) -> SequenceKV:
    """In place or in a buffer, with every so many of its tokens recomputed."""
    kvs = [isolated(executor.model, ids) for ids in CHUNKS]
    capacity = len(PROMPT) + len(ANSWER)
    placed: PromptKV
    if in_place:
        there = [to_resident(executor.model, kv) for kv in kvs]
        placed = SharedChunks(executor, PROMPT, there, capacity)
    else:
        placed = place_in_buffer(executor, PROMPT, kvs, capacity)
    selection = TokenSelection(PROMPT.chunk_positions[2::every])
    return PlacedPrompt(executor, PROMPT, placed).recompute(selection).kv


def request(executor: Executor, in_place: bool, every: int) -> Decoded:
    alone = prefilled(executor, in_place, every)
    step = executor.appender(alone, len(PROMPT))
    return Decoded(prefilled(executor, in_place, every), [step(token) for token in ANSWER])


def requests(executor: Executor) -> list[Decoded]:
    kinds = ((True, 3), (False, 4), (True, 7), (False, 6), (True, 5))
    return [request(executor, in_place, every) for in_place, every in kinds]


def check(
    steps: DecodeSteps | Executor, these: list[Decoded], done: dict[int, int], which: list[int]
) -> None:
    """One more token of those requests. done: how many of each were out before."""
    decode = steps.decode if isinstance(steps, Executor) else steps
    rows = [DecodeRow(ANSWER[done[i]], len(PROMPT) + done[i], these[i].kv) for i in which]
    found = decode(rows)
    assert found.shape[0] == len(which)
    for logits, i in zip(found, which, strict=True):
        torch.testing.assert_close(logits, these[i].logits[done[i]], **TOLERANCE)
        done[i] += 1


@varied_families
def test_requests_in_one_step_are_each_as_alone(family: str) -> None:
    executor = Executor(model_of(family))
    these, done = requests(executor), dict.fromkeys(range(5), 0)
    for which in ([0, 1, 2, 3, 4], [4, 2, 0], [1], [3, 1], [0, 1, 2, 3, 4]):
        check(executor, these, done, which)


@of_kernel_size
def test_steps_over_tensors_that_stay(family: str, in_triton: Callable[[], None]) -> None:
    """Whichever requests it is, the same ones as before, or others in the place of some."""
    executor = Executor(model_of(family))
    these = requests(executor)
    in_triton()
    done, steps = dict.fromkeys(range(5), 0), DecodeSteps(executor.model)
    for which in ([0, 1, 2], [0, 1, 2], [4, 3, 2], [1, 3]):
        check(steps, these, done, which)


def test_without_a_graph_it_goes_on_and_says_so(
    in_triton: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuse)
    executor = Executor(model_of("qwen3"))
    these = [request(executor, False, 4)]
    in_triton()
    steps, done = DecodeSteps(executor.model), {0: 0}
    with caplog.at_level(logging.WARNING):
        for number in range(len(ANSWER)):
            check(steps, these, done, [0])
            assert len(caplog.records) == (number >= EAGER_STEPS)
    assert "without a CUDA graph" in caplog.text
    assert steps.graphs == 0


def test_few_sizes_serve_all() -> None:
    sizes = [padded_size(count) for count in range(1, 65)]
    assert all(size >= count for count, size in enumerate(sizes, 1))
    assert sorted(set(sizes)) == [1, 2, 4, 8, 12, 16, 24, 32, 48, 64]
    assert len(set(sizes)) < MOST_GRAPHS


def test_kv_that_a_step_was_over_is_let_go(in_triton: Callable[[], None]) -> None:
    """Tables hold addresses, and nothing alive: no request's memory stays behind it."""
    in_triton()
    executor = Executor(model_of("qwen3"))
    buffer = executor.new_buffer(4)
    steps = DecodeSteps(executor.model)
    steps([DecodeRow(3, 0, buffer)])
    gone, layers = ref(buffer), ref(buffer.keys)
    assert isinstance(buffer, KVBuffer)
    del buffer
    assert gone() is layers() is None
