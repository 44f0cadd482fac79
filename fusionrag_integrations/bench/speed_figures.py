"""What the figures of a run of `bench ttft` show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionrag_integrations.bench.plots import Point, lines_plot

TTFTRows = Sequence[Mapping[str, Any]]
"""Those of a result file (`TTFTRow` as plain values)."""


def _ttft_by_context(stem: Path, rows: TTFTRows) -> None:
    series: dict[str, list[Point]] = {}
    for row in rows:
        name = row["strategy"]
        if name != "full_attention":
            name = f"{name}, {row['ratio']:.0%}"
        series.setdefault(name, []).append((row["context"], row["ttft_ms"], *row["spread_ms"]))
    title = "Time to first token by length of the prompt"
    lines_plot(stem, series, {}, title=title, x_label="tokens", y_label="TTFT in ms")


def _speedup_by_ratio(stem: Path, rows: TTFTRows) -> None:
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


SPEED_FIGURES: Mapping[str, Callable[[Path, TTFTRows], None]] = {
    "ttft-by-context": _ttft_by_context,
    "speedup-by-ratio": _speedup_by_ratio,
}
