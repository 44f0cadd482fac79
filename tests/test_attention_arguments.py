"""What a model gives its attention beside queries, keys and values: known, or refused by name."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from fusionrag_integrations.errors import UnsupportedModelError
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from tests.tiny_models import FACTORIES, build

IDS = [5, 9, 40, 7]


def executor_giving(family: str, **arguments: Any) -> Executor:
    """An executor of a model whose attention passes on arguments of its own."""
    model = build(family)
    for layer in model.base_model.layers:
        layer.self_attn.forward = partial(layer.self_attn.forward, **arguments)
    return Executor(CausalModel(model, None, family))


def all_ways(executor: Executor) -> list[torch.Tensor]:
    """Logits of every way to run the model."""
    buffer = executor.new_buffer(len(IDS) + 1)
    rows = executor.forward_rows(IDS, range(len(IDS)), buffer)[0]
    appended = executor.appender(buffer, len(IDS))(3)
    dense, step = executor.prefill_dense(IDS)
    return [rows, appended, dense, step(3)]


@pytest.mark.parametrize("family", FACTORIES)
def test_supported_families_give_nothing_unknown(family: str) -> None:
    rows, appended, dense, step = all_ways(executor_giving(family))
    torch.testing.assert_close(rows, dense, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(appended, step, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"), [("soft_cap", 30.0), ("position_bias", torch.zeros(4)), ("sinks", True)]
)
def test_what_is_unknown_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=f"qwen3 model gives its attention '{name}'"):
        executor_giving("qwen3", **{name: value})


@pytest.mark.parametrize("value", [None, 0, 0.0, False])
def test_what_is_off_is_no_hindrance(value: object) -> None:
    plain, given = (
        all_ways(executor_giving("llama_gqa2", **arguments))
        for arguments in ({}, {"position_bias": value})
    )
    for found, expected in zip(given, plain, strict=True):
        assert torch.equal(found, expected)


def test_what_has_no_effect_is_known() -> None:
    plain, given = (
        all_ways(executor_giving("llama_gqa2", **arguments))
        for arguments in ({}, {"cache_position": torch.arange(4), "output_attentions": True})
    )
    for found, expected in zip(given, plain, strict=True):
        assert torch.equal(found, expected)
