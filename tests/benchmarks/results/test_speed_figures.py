"""What is drawn of times to first token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.results import speed_figures
from benchmarks.results.speed_figures import SPEED_FIGURES


def row(strategy: str, ratio: float, context: int, ttft_ms: float, limit: float) -> dict[str, Any]:
    facts = {"strategy": strategy, "ratio": ratio, "context": context, "ttft_ms": ttft_ms}
    return facts | {"limit_ms": limit, "speedup": 90 / ttft_ms, "spread_ms": [ttft_ms, ttft_ms + 1]}


ROWS = [
    row("full_attention", 1.0, 500, 100.0, 80.0),
    row("fusionrag", 0.0, 500, 10.0, 5.0),
    row("fusionrag", 0.15, 500, 30.0, 20.0),
    row("fusionrag", 1.0, 500, 120.0, 80.0),
    row("full_attention", 1.0, 1000, 200.0, 160.0),
    row("fusionrag", 0.15, 1000, 45.0, 25.0),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The lines that a figure was drawn of."""
    lines: dict[str, Any] = {}
    monkeypatch.setattr(
        speed_figures, "lines_plot", lambda stem, series, *_, **__: lines.update(series)
    )
    return lines


def test_times_by_context(drawn: dict[str, Any]) -> None:
    SPEED_FIGURES["ttft-by-context"](Path("x"), {"rows": ROWS})
    assert drawn == {
        "full_attention": [(500, 100.0, 100.0, 101.0), (1000, 200.0, 200.0, 201.0)],
        "fusionrag, 0%": [(500, 10.0, 10.0, 11.0)],
        "fusionrag, 15%": [(500, 30.0, 30.0, 31.0), (1000, 45.0, 45.0, 46.0)],
        "fusionrag, 100%": [(500, 120.0, 120.0, 121.0)],
    }


def test_speed_ups_by_ratio_beside_what_could_be(drawn: dict[str, Any]) -> None:
    SPEED_FIGURES["speedup-by-ratio"](Path("x"), {"rows": ROWS})
    assert drawn == {
        "fusionrag, 500 tokens": [(0.0, 9.0, 9.0, 9.0), (0.15, 3.0, 3.0, 3.0)],
        "limit, 500": [(0.0, 20.0, 20.0, 20.0), (0.15, 5.0, 5.0, 5.0)],
        "fusionrag, 1,000 tokens": [(0.15, 2.0, 2.0, 2.0)],
        "limit, 1,000": [(0.15, 8.0, 8.0, 8.0)],
    }


def test_times_by_requests_a_second(drawn: dict[str, Any]) -> None:
    def load(system: str, ratio: float | None, clients: int | None, p50: float | None) -> Any:
        row = {"system": system, "way": "batches", "ratio": ratio, "clients": clients}
        row |= {"requests_per_s": clients and clients / 2, "ttft_p50_ms": p50}
        return row | {"ttft_p99_ms": None if p50 is None else 2 * p50}

    rows = [
        load("fusionrag", 0.15, None, 5000.0),
        load("fusionrag", 0.15, 8, 50000.0),
        load("fusionrag", 0.15, 2, 20000.0),
        load("fusionrag_serial", 0.15, 2, 20000.0),
        load("fusionrag_serial", 0.15, 8, 20000.0),
        load("full_attention", None, 2, 70000.0),
        load("full_attention", None, 8, 80000.0),
        load("full_attention", None, 16, None),
        load("llama_cpp", None, 8, 70000.0),
    ]
    SPEED_FIGURES["ttft-by-throughput"](Path("x"), {"rows": rows})
    assert drawn == {
        "fusionrag, 15%": [(4.0, 50.0, 50.0, 100.0), (1.0, 20.0, 20.0, 40.0)],
        "full_attention, batches": [(1.0, 70.0, 70.0, 140.0), (4.0, 80.0, 80.0, 160.0)],
    }


def test_attention_below_its_roofs(drawn: dict[str, Any]) -> None:
    """10^12 operations and 10^11 bytes a second: the ridge is at ten operations a byte."""
    few = {"keys": 4096, "ratio": 0.1, "work": {"flops": 4e9, "bytes": 2e9}, "sparse_ms": 40.0}
    many = {"keys": 4096, "ratio": 1.0, "work": {"flops": 4e10, "bytes": 2e9}, "sparse_ms": 80.0}
    dense = {"dense_work": {"flops": 4e10, "bytes": 2e9}, "dense_ms": 50.0}
    result = {"rows": [few | dense, many | dense], "peak_flops": 1e12, "peak_bytes": 1e11}
    SPEED_FIGURES["roofline"](Path("x"), result)
    assert drawn == {
        "ours, 4,096 keys": [(2.0, *[100.0] * 3), (20.0, *[500.0] * 3)],
        "dense": [(20.0, *[800.0] * 3)],
        "roof": [(2.0, *[200.0] * 3), (10.0, *[1000.0] * 3), (20.0, *[1000.0] * 3)],
    }
