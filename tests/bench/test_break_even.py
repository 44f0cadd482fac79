"""How long a prompt must be for reuse to pay."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusionrag_integrations.bench import break_even as module
from fusionrag_integrations.bench.break_even import break_even, measure_break_even
from fusionrag_integrations.execution.hf.model import CausalModel


@pytest.mark.parametrize(
    ("speedups", "tokens"),
    [
        ([0.5, 0.9, 1.2, 1.4], 300),
        ([0.5, 1.1, 0.9, 1.4], 400),  # once quicker is not enough
        ([1.1, 1.2, 1.3, 1.4], 0),
        ([0.5, 0.6, 0.7, 1.0], 401),
        ([1.0], 101),
    ],
)
def test_from_where_on_reuse_is_always_quicker(speedups: list[float], tokens: int) -> None:
    lengths = (100, 200, 300, 400)
    assert break_even(list(zip(lengths, speedups, strict=False))) == tokens


def test_lengths_are_measured_until_it_is_sure(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONTEXTS", (128, 192, 256, 9999))
    monkeypatch.setattr(module, "REPEAT", 1)
    model = CausalModel.load(model_dir)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "SURE", 1e9)
    tokens, measured = measure_break_even(model, None, lambda *step: told.append(step))
    assert list(measured["speedups"]) == ["128", "192", "256"]  # the last is beyond its window
    assert tokens == break_even([(int(k), v) for k, v in measured["speedups"].items()])
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr(module, "SURE", 0.0)
    _, measured = measure_break_even(model, None, lambda *step: None)
    assert list(measured["speedups"]) == ["128"]
