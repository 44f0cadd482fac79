"""Results on file are what the simulations and the cost model give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale.dollars import Prices
from benchmarks.scale.measured import services
from benchmarks.scale.parameters import Cluster, read_service, service_from
from benchmarks.scale.policies import AtRandom, ByMemory
from benchmarks.scale.routing import REPLICAS, Setting, run_policy
from benchmarks.scale.serving import Plan
from benchmarks.scale.studies import both_services, costs, ingesting, invented_workloads, serving
from tests.benchmarks.test_commands import run_command, said

RESULTS = Path(__file__).parents[3] / "docs" / "benchmarks"


def on_file(name: str) -> Any:
    return json.loads((RESULTS / "scale" / f"{name}.json").read_text())


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def same(found: Any, kept: Any) -> None:
    """Equal, but for the last digits of numbers."""
    if isinstance(kept, dict):
        assert found.keys() == kept.keys()
        for name in kept:
            same(found[name], kept[name])
    elif isinstance(kept, list):
        assert len(found) == len(kept)
        for one, other in zip(found, kept, strict=True):
            same(one, other)
    else:
        assert found == (pytest.approx(kept, rel=1e-6) if isinstance(kept, float) else kept)


def test_costs() -> None:
    same(as_json(costs(RESULTS, Prices())), on_file("cost"))


def test_ingest() -> None:
    same(as_json(ingesting(RESULTS)), on_file("ingest"))


def test_the_small_end_of_serving() -> None:
    kept = on_file("serving")
    found = as_json(serving(RESULTS, Plan(replicas=(1, 2, 4))))
    assert found["service"] == kept["service"]
    same(found["rows"], kept["rows"][: len(found["rows"])])


def test_routing() -> None:
    kept = on_file("routing")
    service, _ = both_services(RESULTS)
    name = "topics, 90% own"
    prompts, served = invented_workloads(service)[name]
    (rows,) = [work["rows"] for work in kept["workloads"] if work["name"] == name]
    cluster = Cluster(REPLICAS, prompts.tokens * served.bytes_a_token / REPLICAS, 0, served)
    for chosen, policy in (("random", AtRandom()), ("ours", ByMemory())):
        found = run_policy(cluster, prompts, Setting(**kept["setting"]), policy)
        (row,) = [row for row in rows if row["policy"] == chosen]
        same(as_json(found.hits), row["hits"])
        same(found.ttft_p99_s, row["ttft_p99_s"])


class TestMeasured:
    def test_prefill_is_close_to_what_was_measured(self) -> None:
        """Full attention's two lengths exactly; ours, which is fitted, within 15%."""
        reuse, full = both_services(RESULTS)
        rows = json.loads((RESULTS / "h100" / "ttft-host.json").read_text())["rows"]
        for row in rows:
            own = next(
                r["rows"] for r in rows if r["ratio"] == 0 and r["context"] == row["context"]
            )
            chunks = row["context"] - own
            if row["strategy"] == "full_attention":
                assert full.prefill_s(chunks, own) == pytest.approx(row["ttft_ms"] / 1e3)
            elif row["ratio"] == 0.15:
                assert reuse.prefill_s(chunks, own) == pytest.approx(row["ttft_ms"] / 1e3, rel=0.15)

    def test_a_file_of_measured_values(self, tmp_path: Path) -> None:
        path = tmp_path / "service.json"
        path.write_text(json.dumps(services(RESULTS)["reuse"] | {"note": "ignored"}))
        assert read_service(path) == both_services(RESULTS)[0]
        assert service_from(services(RESULTS)["reuse"], "") == both_services(RESULTS)[0]


class TestCommands:
    few = ("--results", RESULTS, "--requests", 40)

    def test_serving(self) -> None:
        found = said(run_command("scale", "serving", *self.few, "--replicas", "1,2", "--json"))
        assert [row["replicas"] for row in found["rows"]] == [1, 1, 1, 2, 2, 2]
        table = run_command("scale", "serving", *self.few, "--replicas", "2").stdout
        assert "| 2 | ours |" in table

    def test_routing(self, tmp_path: Path) -> None:
        table = run_command("scale", "routing", *self.few).stdout
        assert "| ours, nothing reported |" in table

    def test_ingest_and_cost(self) -> None:
        assert "| h100 | 8 |" in run_command("scale", "ingest", "--results", RESULTS).stdout
        dear = ("--gpu-hour", 6, "--months", 12, "--json")
        found = said(run_command("scale", "cost", "--results", RESULTS, *dear))
        assert found["prices"]["gpu_hour"] == 6.0
        table = run_command("scale", "cost", "--results", RESULTS).stdout
        assert "| llama-2-7b |" in table
        assert "| 27,104 |" in table

    def test_driver(self) -> None:
        found = said(run_command("scale", "driver", "--chunks", 8, "--json"))
        assert found["chunks"] >= 8
        assert found["ms_a_chunk"] > 0
