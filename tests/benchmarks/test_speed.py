"""The benchmarks of the kernel, of ingest and decode, and the suite that runs them in one call."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_suite, kernel
from benchmarks.gpu_suite import Result, run_suite, steps
from benchmarks.kernel import SUFFIX, HeadShape, measure_kernel
from benchmarks.memory import measure_memory, tensor_bytes_since, tensor_storages
from benchmarks.offline import measure_decode, measure_ingest, measure_offline
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.bench.clock import times_ms
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.model import CausalModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(model_dir: Path) -> CausalModel:
    return CausalModel.load(model_dir)


def test_the_first_call_warms_up() -> None:
    calls: list[int] = []
    assert len(times_ms(lambda: calls.append(1), 3, CPU)) == 3
    assert len(calls) == 4


def kernel_times(**changes: Any) -> Result:
    asked = {"shape": HeadShape(4, 2, 16), "keys": [200, 300], "ratios": [0.01, 0.5, 1.0]}
    asked |= {"dtype": torch.float32, "device": CPU, "repeat": 2}
    return measure_kernel(**(asked | {"progress": lambda *told: None} | changes))  # type: ignore[arg-type]


class TestKernel:
    def test_every_number_of_keys_with_every_share_of_rows(self) -> None:
        result = kernel_times()
        assert [(row["keys"], row["ratio"], row["rows"]) for row in result["rows"]] == [
            *((200, 0.01, SUFFIX), (200, 0.5, 100), (200, 1.0, 200)),
            *((300, 0.01, SUFFIX), (300, 0.5, 150), (300, 1.0, 300)),
        ]
        for row in result["rows"]:
            assert min(row["sparse_ms"], row["masked_ms"], row["dense_ms"]) > 0.0
            assert row["error"] < 1e-5
            assert row["flex_ms"] is None  # there is no GPU
        assert (result["heads"], result["dtype"], result["device"]) == (4, "float32", "cpu")

    def test_chunks_in_place_can_be_timed(self) -> None:
        """It is on a GPU only; here what it does is run once."""
        rows = Rows.at([5, 200, 399], CPU)
        queries, keys, values = (torch.randn(h, n, 32) for h, n in ((4, 3), (2, 400), (2, 400)))
        assert kernel.in_place_ms(queries, keys, values, rows, repeat=1) > 0.0

    def test_masks_that_are_too_large_are_not_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("benchmarks.kernel.LARGEST_MASK", 200 * SUFFIX)
        small, large = kernel_times(keys=[200], ratios=[0.01, 0.5])["rows"]
        assert small["masked_ms"] is not None
        assert (large["masked_ms"], large["error"]) == (None, None)
        assert large["sparse_ms"] > 0.0


def test_a_fused_pass_beside_an_isolated_one(model: CausalModel) -> None:
    result = measure_offline(model, chunk_tokens=40, neighbours=3, repeat=2)
    assert (result["chunk_tokens"], result["neighbours"]) == (40, 3)
    assert result["ratio"] == pytest.approx(result["fused_ms"] / result["isolated_ms"])
    assert result["isolated_ms"] > 0.0


def test_many_chunks_in_a_pass(model: CausalModel) -> None:
    result = measure_offline(model, chunk_tokens=150, neighbours=1, repeat=1)
    assert result["together"] == 3  # of about five hundred tokens
    assert 0.0 < result["isolated_together_ms"] < 3 * result["isolated_ms"]
    assert result["fused_together_ms"] > 0.0


def test_a_whole_ingest_by_stages(model: CausalModel) -> None:
    told: list[str] = []
    result = measure_ingest(model, 6, lambda stage, done, total: told.append(stage))
    assert result["chunks"] == 6
    assert list(result["stage_ms"]) == list(dict.fromkeys(told))
    assert {"catalog", "isolated", "fused"} <= result["stage_ms"].keys()
    assert sum(result["stage_ms"].values()) == pytest.approx(result["chunk_ms"], rel=0.05)


class TestMemory:
    def test_what_a_request_holds(self, model: CausalModel) -> None:
        result = measure_memory(model, context=400, ratio=0.15)
        a_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 4
        assert result["own_bytes"] == result["own_tokens"] * a_token
        assert result["own_bytes"] < result["in_place_bytes"] < result["placed_bytes"]
        assert result["placed_bytes"] == pytest.approx((result["context"] + 256) * a_token, rel=0.1)
        assert result["beyond_own"] == result["in_place_bytes"] / result["own_bytes"] - 1.0

    def test_only_what_is_alive_counts_and_once(self) -> None:
        before = tensor_storages(CPU)
        held = torch.zeros(1000)
        views = [held[:10], held.view(10, 100)]
        assert tensor_bytes_since(before, CPU) == 4000
        del held, views
        assert tensor_bytes_since(before, CPU) == 0

    def test_what_is_let_go_meanwhile_does_not_count_against_it(self) -> None:
        going = torch.zeros(5000)
        before = tensor_storages(CPU)
        held = torch.zeros(1000)
        del going
        assert tensor_bytes_since(before, CPU) == held.nbytes


def test_a_token_of_an_answer(model: CausalModel) -> None:
    result = measure_decode(model, context=60, repeat=3)
    assert result["context"] == 60
    assert result["placed_ms"] > 0.0
    assert result["dense_ms"] > 0.0


class TestSuite:
    def test_all_steps_leave_their_results(self, model: CausalModel, tmp_path: Path) -> None:
        chosen = steps(lambda: model, (200,), (128,), CPU, torch.float32, repeat=1)
        assert run_suite(tmp_path / "out", chosen, seconds=600) == []
        assert {path.stem for path in (tmp_path / "out").glob("*.json")} == chosen.keys()
        summary = (tmp_path / "out" / "summary.md").read_text()
        assert all(f"## {name}\n" in summary for name in chosen)
        assert "| 128 | 15% |" in summary
        assert summary.count("| full_attention |") == 3
        assert "Left out" not in summary

    def test_what_fails_or_comes_too_late_is_named(self, tmp_path: Path) -> None:
        def fails() -> Result:
            raise RuntimeError("out of memory")

        def works() -> Result:
            return {"device": "none"}

        left = run_suite(tmp_path, {"big": fails, "small": works}, seconds=600)
        assert left == ["big: out of memory"]
        assert "- big: out of memory" in (tmp_path / "summary.md").read_text()
        assert json.loads((tmp_path / "small.json").read_text()) == works()
        assert run_suite(tmp_path, {"late": works}, seconds=-1.0) == ["late: no time left"]

    @pytest.fixture
    def tested(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
        def tests(body: str) -> None:
            (tmp_path / "test_it.py").write_text(f"def test_it():\n    {body}\n")
            monkeypatch.setattr(gpu_suite, "TESTS", (str(tmp_path / "test_it.py"),))
            monkeypatch.setattr(gpu_suite, "WORKERS", 0)  # one test needs none

        return tests

    def test_tests_come_first(self, tested: Callable[[str], None]) -> None:
        tested("assert True")
        ((path, told),) = gpu_suite.check()["tests"].items()
        assert path.endswith("test_it.py")
        assert "1 passed" in told

    def test_nothing_is_timed_where_they_fail(self, tested: Callable[[str], None]) -> None:
        tested("assert 1 == 2")
        with pytest.raises(InvalidInputError, match="assert 1 == 2"):
            gpu_suite.check()

    def test_the_tests_that_it_names_are_there(self) -> None:
        root = gpu_suite.ROOT
        assert all((root / path).exists() for path in gpu_suite.TESTS)
