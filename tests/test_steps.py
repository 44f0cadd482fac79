"""One token after the other: over tensors that stay where they are, and as a graph."""

from __future__ import annotations

import logging
from threading import Lock

import pytest
import torch

from fusionrag_integrations.execution.buffer import KVBuffer
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.steps import EAGER_STEPS, GraphedSteps
from tests.test_gates import TOLERANCE, every_family, model_of, tokens

PROMPT = tokens(1, 40)  # longer than the windows of some
ANSWER = tokens(2, EAGER_STEPS + 4)


def prefilled(family: str) -> tuple[KVBuffer, torch.Tensor]:
    """With room for the answer and something that no token may see behind it."""
    model = model_of(family)
    executor = Executor(model)
    buffer = executor.new_buffer(len(PROMPT) + len(ANSWER) + 3)
    buffer.keys.fill_(7.0)
    buffer.values.fill_(7.0)
    return buffer, executor.forward_rows(PROMPT, range(len(PROMPT)), buffer)[0]


@every_family
def test_static_steps_are_steps(family: str) -> None:
    model = model_of(family)
    executor = Executor(model)
    (buffer, _), (other, _) = prefilled(family), prefilled(family)
    step = executor.appender(buffer, len(PROMPT))
    static = executor.static_step(other, len(PROMPT))
    for token in ANSWER:
        static.feed(token)
        torch.testing.assert_close(static.run(), step(token), **TOLERANCE)
    torch.testing.assert_close(other.keys, buffer.keys, **TOLERANCE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU makes the graph")
def test_without_a_graph_it_goes_on_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("llama_gqa2")
    executor = Executor(model)
    (buffer, _), (other, _) = prefilled("llama_gqa2"), prefilled("llama_gqa2")
    step = executor.appender(buffer, len(PROMPT))
    graphed = GraphedSteps(executor.static_step(other, len(PROMPT)), model.device, Lock())
    with caplog.at_level(logging.WARNING):
        for number, token in enumerate(ANSWER):
            torch.testing.assert_close(graphed(token), step(token), **TOLERANCE)
            assert len(caplog.records) == (number >= EAGER_STEPS)
    assert "without a CUDA graph" in caplog.text
