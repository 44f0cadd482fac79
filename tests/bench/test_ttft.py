"""Times to first token: what is asked, counted, and set beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionrag_integrations.bench.ceilings import Ceilings
from fusionrag_integrations.bench.shapes import SHAPES, model_of_shape
from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.bench.ttft import TTFTRow, fit, measure_ttft
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.serving.alone import answer_alone
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.serving.pipeline import Pipeline
from fusionrag_integrations.serving.usage import TTFTBreakdown
from fusionrag_integrations.store.kv.record_files import RecordFile

FULL = Strategy("full_attention", "none", 1.0)
STRATEGIES = [FULL, *(Strategy("fusionrag", "isolated", ratio) for ratio in (0.0, 0.15, 1.0))]
PARTS = {part.name for part in fields(TTFTBreakdown)}


@pytest.fixture(scope="module")
def model(model_dir: Path) -> CausalModel:
    return CausalModel.load(model_dir)


def measured(model: CausalModel, **changes: Any) -> dict[str, Any]:
    asked = {"contexts": [200, 400], "strategies": STRATEGIES, "tier": "host", "repeat": 2}
    asked |= {"calibration": None, "progress": lambda stage, done, total: None}
    return measure_ttft(model, **(asked | changes))


def test_every_strategy_over_every_context(model: CausalModel) -> None:
    result = measured(model)
    rows = result["rows"]
    assert [(row["strategy"], row["ratio"]) for row in rows] == 2 * [
        (strategy.name, strategy.ratio) for strategy in STRATEGIES
    ]
    assert (result["model"], result["dtype"], result["device"]) == (model.name, "float32", "cpu")
    for row, asked in zip(rows, [200] * 4 + [400] * 4, strict=True):
        assert asked - 12 <= row["context"] <= asked
        assert row["kv"] == ("none" if row["strategy"] == "full_attention" else "host")
        assert row["breakdown"].keys() == PARTS
        assert 0.0 < row["limit_ms"] < row["ttft_ms"] < row["from_text_ms"]
        assert row["spread_ms"][0] <= row["ttft_ms"] <= row["spread_ms"][1]
    full, none, some, everything = rows[:4]
    assert full["speedup"] == 1.0
    assert full["rows"] == everything["rows"] == full["context"]
    chunk_tokens = full["context"] - none["rows"]
    assert chunk_tokens > 0.5 * full["context"]
    assert some["rows"] == none["rows"] + int(0.15 * chunk_tokens)
    assert (
        none["attended"]
        < some["attended"]
        < full["attended"]
        == full["context"] * (full["context"] + 1) // 2
    )
    assert none["limit_ms"] < everything["limit_ms"]


def test_strategies_take_turns_and_the_first_round_is_not_counted(
    model: CausalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    request = Pipeline.request

    def watched(pipeline: Pipeline, prompt: Any, settings: Any) -> Any:
        asked.append(settings.ratio if settings.kv != "none" else -1.0)
        return request(pipeline, prompt, settings)

    monkeypatch.setattr(Pipeline, "request", watched)
    told: list[tuple[int, int]] = []
    measured(
        model,
        contexts=[200],
        strategies=STRATEGIES[:3],
        progress=lambda stage, done, total: told.append((done, total)),
    )
    assert asked == [-1.0, 0.0, 0.15, 0.0, 0.15, -1.0, 0.15, -1.0, 0.0]
    assert told == [(done, 9) for done in range(10)]


def test_the_disk_tier_reads_files(model: CausalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    read_all = RecordFile.read_all

    def watched(file: RecordFile, data: memoryview) -> None:
        read.append(file.header.key)
        read_all(file, data)

    monkeypatch.setattr(RecordFile, "read_all", watched)
    rows = measured(model, tier="disk", contexts=[200], repeat=1)["rows"]
    # Once to bring it to its tier, then for each strategy that reuses, in each round.
    assert len(read) == (1 + 3 * 2) * len(set(read)) > 0
    assert [row["kv"] for row in rows] == ["none", "disk", "disk", "disk"]
    for tier in ("host", "device"):
        read.clear()
        measured(model, tier=tier, contexts=[200], repeat=1)
        assert len(read) == len(set(read)) > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tier": "tape"}, "'tape'; choose device, host, disk"),
        ({"contexts": [5000]}, "5000 tokens is too long: tiny-llama.* holds 2048"),
        ({"contexts": [20]}, "20 tokens has no room"),
    ],
)
def test_what_cannot_be_measured(model: CausalModel, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        measured(model, **changes)


def row(rows: int, attended: int, ttft_ms: float) -> TTFTRow:
    return TTFTRow(
        *("fusionrag", 0.1, 100, "host", ttft_ms, (0.0, 0.0), 0.0, 1.0, 0.0, rows, attended, {})
    )


def test_a_fit_finds_what_times_are_made_of() -> None:
    def time(rows: int, attended: int) -> float:
        return 5.0 + 0.25 * rows + 3e-6 * attended * 4

    facts = [(10, 1000), (20, 9000), (40, 5000), (80, 70_000), (160, 30_000)]
    found = fit([row(*fact, time(*fact)) for fact in facts], layers=4)
    assert found is not None
    assert found["fixed_ms"] == pytest.approx(5.0)
    assert found["ms_a_row"] == pytest.approx(0.25)
    assert found["ms_a_million_keys"] == pytest.approx(3.0)
    assert found["r_squared"] == pytest.approx(1.0)
    off = fit(
        [row(*fact, time(*fact) * (1 + 4 * (i == 2))) for i, fact in enumerate(facts)], layers=4
    )
    assert off is not None
    assert off["r_squared"] < 0.9
    assert fit([row(*fact, 1.0) for fact in facts[:3]], layers=4) is None


class TestCeilings:
    @pytest.fixture
    def ceilings(self, model: CausalModel, monkeypatch: pytest.MonkeyPatch) -> Ceilings:
        """Whose attention takes 9 ms and whose KV 5 ms to move."""
        ceilings = Ceilings(model, 3, moves=True)
        ceilings.dense_attention, ceilings.move_kv = 9.0, 5.0
        ceilings.linear = lambda rows: 100.0 * rows  # type: ignore[method-assign]
        return ceilings

    def test_parts_add_up(self, ceilings: Ceilings) -> None:
        assert ceilings.limit(rows=3, attended=6, chunk_tokens=0) == pytest.approx(309.0)
        assert ceilings.limit(rows=1, attended=2, chunk_tokens=0) == pytest.approx(103.0)
        assert ceilings.limit(rows=1, attended=2, chunk_tokens=3) == pytest.approx(108.0)

    def test_products_are_with_every_matrix_of_the_model(
        self, model: CausalModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[tuple[int, int]] = []  # rows, weights
        monkeypatch.setattr(
            "fusionrag_integrations.bench.ceilings.linear",
            lambda x, weight: done.append((len(x), weight.numel())),
        )
        monkeypatch.setattr("fusionrag_integrations.bench.ceilings.REPEATS", 0)
        with pytest.raises(ValueError, match="empty"):  # nothing was timed
            Ceilings(model, 8, moves=True).linear(7)
        layers = model.hf.base_model.layers
        sizes = [
            sum(p.numel() for n, p in layer.named_parameters() if "norm" not in n)
            for layer in layers
        ]
        kv = layers[-1].self_attn
        expected = 7 * sum(sizes[:-1]) + 7 * (kv.k_proj.weight.numel() + kv.v_proj.weight.numel())
        expected += sizes[-1] + model.hf.get_output_embeddings().weight.numel()
        assert sum(rows * weights for rows, weights in done) == expected

    def test_what_is_on_the_device_moves_nowhere(
        self, model: CausalModel, ceilings: Ceilings
    ) -> None:
        still = Ceilings(model, 3, moves=False)
        still.dense_attention, still.linear = 9.0, ceilings.linear  # type: ignore[method-assign]
        assert still.limit(rows=1, attended=2, chunk_tokens=3) == pytest.approx(103.0)

    def test_what_is_measured_takes_time(self, model: CausalModel) -> None:
        ceilings = Ceilings(model, 64, moves=True)
        assert ceilings.dense_attention > 0.0
        assert ceilings.move_kv > 0.0
        assert ceilings.linear(64) > 0.0


class TestShapes:
    @pytest.mark.parametrize(
        ("name", "millions"),
        [
            ("qwen2.5-0.5b", 494),
            ("qwen2.5-7b", 7616),
            ("qwen2.5-14b", 14_770),
            ("mistral-7b", 7248),
            ("llama-3.1-8b", 8030),
        ],
    )
    def test_sizes_are_the_published_ones(self, name: str, millions: int) -> None:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            hf = AutoModelForCausalLM.from_config(SHAPES[name]())
        count = sum(parameter.numel() for parameter in hf.parameters())
        assert count / 1e6 == pytest.approx(millions, rel=2e-3)

    def test_a_made_model_answers(self, small: Callable[[], None]) -> None:
        made = model_of_shape("llama-3.1-8b", "cpu", "bfloat16")
        assert made.dtype == torch.bfloat16
        *_, row = measured(made, contexts=[200], strategies=STRATEGIES[:2], repeat=1)["rows"]
        assert row["context"] >= 190

    @pytest.fixture
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = SHAPES["llama-3.1-8b"]()
        config.update({"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2})
        config.update({"intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16})
        monkeypatch.setitem(SHAPES, "llama-3.1-8b", lambda: config)

    def test_an_unknown_one_names_the_known(self) -> None:
        with pytest.raises(InvalidInputError, match=f"'gpt'; known are {', '.join(SHAPES)}"):
            model_of_shape("gpt", "cpu", "auto")


def test_answers_are_the_pipelines_own(model: CausalModel) -> None:
    """One token each, with all chunks found."""
    from fusionrag_integrations.bench.served import served_prompt

    with served_prompt(model, 300, "host", None) as (pipeline, prompt):
        answer = answer_alone(pipeline, prompt, STRATEGIES[1].settings(max_tokens=1))
    assert isinstance(answer, Answer)
    assert len(answer.token_ids) == 1
    assert (answer.fused_chunks, answer.missed_chunks) == (0, 0)
    assert answer.isolated_chunks >= 1
