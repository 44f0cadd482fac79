"""What the figures of a run of `bench ttft`, `bench throughput` or `bench kernel` show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.results.plots import Point, lines_plot

Result = Mapping[str, Any]
"""A result file: `measure_ttft`'s, `measure_throughput`'s, or `measure_kernel`'s."""


def _ttft_by_context(stem: Path, result: Result) -> None:
    series: dict[str, list[Point]] = {}
    for row in result["rows"]:
        name = row["strategy"]
        if name != "full_attention":
            name = f"{name}, {row['ratio']:.0%}"
        series.setdefault(name, []).append((row["context"], row["ttft_ms"], *row["spread_ms"]))
    title = "Time to first token by length of the prompt"
    lines_plot(stem, series, {}, title=title, x_label="tokens", y_label="TTFT in ms")


def _speedup_by_ratio(stem: Path, result: Result) -> None:
    rows = result["rows"]
    full = {r["context"]: r["ttft_ms"] for r in rows if r["strategy"] == "full_attention"}
    series: dict[str, list[Point]] = {}
    for row in rows:
        if row["strategy"] != "full_attention" and row["ratio"] < 1.0:
            faster, limit = row["speedup"], full[row["context"]] / row["limit_ms"]
            of = f"{row['strategy']}, {row['context']:,} tokens"
            series.setdefault(of, []).append((row["ratio"], faster, faster, faster))
            series.setdefault(f"limit, {row['context']:,}", []).append(
                (row["ratio"], limit, limit, limit)
            )
    title = "Speed-up over full attention,\nand what this machine could reach"
    lines_plot(stem, series, {}, title=title, x_label="recompute ratio", y_label="speed-up")


def _ttft_by_throughput(stem: Path, result: Result) -> None:
    """A line a system from few clients to many, and bands up to the 99th percentile.

    Systems that were asked under the fullest load alone are left to the table, and so is the engine
    one at a time, whose requests a second don't grow.
    """
    series: dict[str, list[Point]] = {}
    for row in result["rows"]:
        if row["clients"] is None or row["ttft_p50_ms"] is None or "serial" in row["system"]:
            continue
        way = row["way"] if row["ratio"] is None else f"{row['ratio']:.0%}"
        first, late = row["ttft_p50_ms"] / 1000, row["ttft_p99_ms"] / 1000
        point = (row["requests_per_s"], first, first, late)
        series.setdefault(f"{row['system']}, {way}", []).append(point)
    most = max(map(len, series.values()))
    lines = {name: points for name, points in series.items() if len(points) == most}
    title = "Time to first token, median and 99th percentile"
    x_label, y_label = "requests a second", "TTFT in s"
    lines_plot(stem, lines, {}, title=title, x_label=x_label, y_label=y_label, log=True)


def _roofline(stem: Path, result: Result) -> None:
    """Ours and dense attention below the two roofs, memory's and arithmetic's."""
    series: dict[str, list[Point]] = {}
    for row in result["rows"]:
        _add_point(series, f"ours, {row['keys']:,} keys", row["work"], row["sparse_ms"])
        if row["ratio"] == 1.0:
            _add_point(series, "dense", row["dense_work"], row["dense_ms"])
    intensities = [point[0] for points in series.values() for point in points]
    ridge = result["peak_flops"] / result["peak_bytes"]
    for intensity in sorted({*intensities, ridge}):
        roof = min(result["peak_flops"], intensity * result["peak_bytes"]) / 1e9
        series.setdefault("roof", []).append((intensity, roof, roof, roof))
    title = "Attention below what memory and arithmetic allow"
    x_label, y_label = "operations a byte", "10^9 operations a second"
    lines_plot(stem, series, {}, title=title, x_label=x_label, y_label=y_label, log=True)


def _add_point(
    series: dict[str, list[Point]], name: str, work: Mapping[str, float], ms: float
) -> None:
    speed = work["flops"] / ms / 1e6
    point = (work["flops"] / work["bytes"], speed, speed, speed)
    series.setdefault(name, []).append(point)


SPEED_FIGURES: Mapping[str, Callable[[Path, Result], None]] = {
    "ttft-by-context": _ttft_by_context,
    "speedup-by-ratio": _speedup_by_ratio,
    "ttft-by-throughput": _ttft_by_throughput,
    "roofline": _roofline,
}
