"""Systems under every load, and what is told of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench.throughput import measure
from fusionrag_integrations.bench.throughput.load import Ask, Outcome, Timed, TokenTimes
from fusionrag_integrations.bench.throughput.measure import measure_throughput
from fusionrag_integrations.bench.throughput.memory import PeakMemory
from fusionrag_integrations.bench.throughput.rows import Load, Measured, throughput_row
from fusionrag_integrations.bench.throughput.systems import System
from fusionrag_integrations.bench.throughput.table import throughput_markdown
from fusionrag_integrations.bench.throughput.workload import Asked
from tests.bench.throughput.conftest import TOKENS, plan

WAYS = ["generate", "batches", "batched decode", "continuous"]


def measured(engine: FusionEngine, **changes: Any) -> dict[str, Any]:
    return measure_throughput(engine, plan(**changes), lambda *told: None)


def serving() -> Iterator[Ask]:
    yield lambda asked, times: []


FULL = System("full_attention", "generate", None, contextmanager(serving))


@pytest.fixture(scope="module")
def result(towns: FusionEngine) -> dict[str, Any]:
    return measured(towns, rounds=2)


@pytest.mark.slow
class TestRun:
    def test_every_system_under_every_load(self, result: dict[str, Any]) -> None:
        rows, fastest = result["rows"], result["fastest_full_attention"]
        assert fastest in WAYS
        ours = [("fusionrag", "together", 0.15), ("fusionrag_serial", "one at a time", 0.15)]
        goes_on = [*ours, ("full_attention", fastest, None)]
        assert [(row["system"], row["way"], row["ratio"]) for row in rows] == [
            *ours,
            *(("full_attention", way, None) for way in WAYS),
            *goes_on,
            *goes_on,
        ]
        assert [row["clients"] for row in rows] == [2] * 6 + [1] * 3 + [None] * 3

    def test_what_is_told_of_each(self, result: dict[str, Any]) -> None:
        for row in result["rows"]:
            assert (row["errors"], row["first_error"]) == (0, "")
            low, high = row["spread_requests_per_s"]
            assert 0.0 < low <= row["requests_per_s"] <= high
            assert row["tokens_per_s"] == pytest.approx(TOKENS * row["requests_per_s"])
            assert 0.0 < row["ttft_p50_ms"] <= row["ttft_p99_ms"]
            assert 0.0 < row["tbt_p50_ms"] <= row["tbt_p99_ms"]
            assert row["peak_device_bytes"] is None
            if sys.platform == "linux":
                assert row["peak_bytes"] > 50e6

    def test_requests_arrive_at_a_share_of_each_systems_own_peak(
        self, result: dict[str, Any]
    ) -> None:
        rows = result["rows"]
        for row in rows[-3:]:
            peak = max(
                other["requests_per_s"]
                for other in rows[:-3]
                if (other["system"], other["way"]) == (row["system"], row["way"])
            )
            assert row["share"] == 0.5
            assert row["arrivals_per_s"] == pytest.approx(0.5 * peak)
        assert all(row["arrivals_per_s"] is row["share"] is None for row in rows[:-3])

    def test_the_fastest_way_answers_most_requests_a_second(self, result: dict[str, Any]) -> None:
        full = [row for row in result["rows"][:6] if row["system"] == "full_attention"]
        (goes_on,) = (row for row in full if row["way"] == result["fastest_full_attention"])
        others = [row["requests_per_s"] for row in full if row is not goes_on]
        assert max(goes_on["spread_requests_per_s"]) >= max(others)  # in the first round

    def test_what_the_engine_could_reach(self, result: dict[str, Any]) -> None:
        (bound,) = result["bounds"]
        assert (bound["ratio"], bound["clients"]) == (0.15, 2)
        reached = result["rows"][0]["requests_per_s"]
        assert bound["reached"] == pytest.approx(reached / bound["requests_per_s"])
        assert result["short_behind_long"]["ratio"] == 0.15

    def test_it_says_on_what_and_how(self, result: dict[str, Any]) -> None:
        assert {"date", "hardware", "versions", "model", "dtype", "device"} <= result.keys()
        settings = result["settings"]
        assert (settings["chunks"], settings["requests"], settings["rounds"]) == (12, 4, 2)
        assert settings["shortest_prompt"] <= settings["longest_prompt"] <= 400
        assert json.loads(json.dumps(result))["rows"][0]["system"] == "fusionrag"

    def test_as_a_table(self, result: dict[str, Any]) -> None:
        lines = [line.split("|")[1:-1] for line in throughput_markdown(result["rows"]).splitlines()]
        assert len({len(line) for line in lines}) == 1
        assert [line[0].strip() for line in lines[2:9]] == ["2 clients"] * 6 + ["1 client"]
        assert lines[-1][0].strip().endswith("/s (50% of peak)")
        assert lines[4][1].strip() == "full_attention, generate"


def test_systems_take_turns_in_each_round(
    towns: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int, tuple[int, ...]]] = []

    def watched(ask: Any, requests: Any, tokens: int, clients: int) -> Outcome:
        asked.append(("", clients, requests[0].token_ids))
        return Outcome((Timed(0.0, (1.0, 2.0), 2.0),), ())

    monkeypatch.setattr(measure, "closed_loop", watched)
    told: list[tuple[str, int, int]] = []
    measure_throughput(
        towns, plan(shares=(), rounds=2, clients=(3, 1)), lambda *now: told.append(now)
    )
    warm_up, fullest, others = asked[:6], asked[6:15], asked[15:]
    assert {clients for _, clients, _ in warm_up} == {2}
    assert {clients for _, clients, _ in fullest} == {3}
    assert {clients for _, clients, _ in others} == {1}
    assert len(others) == 2 * 3
    # All systems are asked the same in a round, and something else in the next one, to which slower
    # ways to full attention don't go on.
    first, second = ({ids for *_, ids in part} for part in (fullest[:6], fullest[6:]))
    assert len(first) == len(second) == 1
    assert first != second
    assert told[-1][1:] == (0, 0)  # there was no open loop
    assert [now for now in told if now[0] == "fullest" and now[1] == now[2]] == [
        ("fullest", 6, 6),
        ("fullest", 3, 3),
    ]
    assert [now for now in told if now[0] == "bounds"] == [("bounds", 0, 1), ("bounds", 1, 1)]


def test_llama_cpp_is_asked_in_the_fullest_closed_loop(
    towns: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def answer(request: Asked, times: TokenTimes) -> list[int]:
        asked.append(request.token_ids)
        for _ in range(TOKENS):
            times.add()
        return [1] * TOKENS

    def serve() -> Iterator[Ask]:
        yield answer

    beside = System("llama_cpp", "Q4_1 weights, one at a time", None, contextmanager(serve))
    monkeypatch.setattr(measure, "llama_cpp_systems", lambda *given: [beside])
    result = measured(towns, clients=(2,), shares=())
    (row,) = (row for row in result["rows"] if row["system"] == "llama_cpp")
    assert (row["way"], row["ratio"], row["clients"]) == (beside.way, None, 2)
    assert len(asked) == 2 + 4  # to warm up, and the others' requests
    assert result["fastest_full_attention"] in WAYS
    assert "| llama_cpp, Q4_1 weights, one at a time |" in throughput_markdown(result["rows"])


def test_the_peak_of_memory_is_of_its_own_time() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells")
    large = torch.ones(100_000_000, dtype=torch.uint8)
    with_it = PeakMemory(torch.device("cpu")).host
    del large
    after = PeakMemory(torch.device("cpu"))
    assert with_it is not None
    assert after.host is not None
    assert after.host < with_it - 50e6
    later = torch.ones(100_000_000, dtype=torch.uint8)
    del later
    assert after.host > with_it - 50e6


class TestRows:
    def test_rounds_are_put_together(self) -> None:
        rounds = [
            Measured(Outcome((Timed(0.0, (0.1, 0.2), 0.5), Timed(0.1, (0.3, 0.6), 1.0)), ()), 7, 1),
            Measured(Outcome((Timed(0.0, (0.4, 0.5), 1.0),), ("E: x", "E: y")), 9, None),
        ]
        row = throughput_row(FULL, Load(None, 0.5), 3.0, 2, rounds)
        assert (row.requests_per_s, row.spread_requests_per_s) == (1.5, (1.0, 2.0))
        assert row.tokens_per_s == 3.0
        assert row.ttft_p50_ms == pytest.approx(200.0)
        assert row.tbt_p50_ms == pytest.approx(100.0)
        assert (row.errors, row.first_error) == (2, "E: x")
        assert (row.peak_bytes, row.peak_device_bytes) == (9, 1)
        assert (row.clients, row.arrivals_per_s, row.share) == (None, 3.0, 0.5)

    def test_what_answers_nothing_has_no_times(self) -> None:
        row = throughput_row(FULL, Load(2), None, 2, [Measured(Outcome((), ("E: x",)), None, None)])
        assert (row.requests_per_s, row.ttft_p50_ms, row.tbt_p99_ms) == (0.0, None, None)
        assert (row.errors, row.peak_bytes) == (1, None)


def test_a_system_that_answers_nothing_is_counted_and_ends_nothing(
    towns: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(engine: FusionEngine, *given: Any) -> Any:
        raise RuntimeError("no engine today")

    monkeypatch.setattr(FusionEngine, "stream", refused)
    result = measured(towns, clients=(1,))
    rows = result["rows"]
    assert (result["bounds"], result["short_behind_long"]) == ([], None)
    failed = [row for row in rows if row["system"] != "full_attention"]
    assert [(row["errors"], row["requests_per_s"]) for row in failed] == [(4, 0.0)] * 2
    assert {row["first_error"] for row in failed} == {"RuntimeError: no engine today"}
    assert [row["errors"] for row in rows if row["system"] == "full_attention"] == [0] * 5
    assert "| 4 |" in throughput_markdown(rows)


def test_the_models_own_config_is_its_own_again(model_dir: Any, tmp_path: Any) -> None:
    with FusionEngine.from_pretrained(model_dir, store=tmp_path / "store") as engine:
        own = engine.model.hf.generation_config
        with pytest.raises(ValueError, match="has no chunks"):
            measured(engine)
        assert engine.model.hf.generation_config is own
