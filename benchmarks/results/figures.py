"""What a run's figures show: each one kind of question, on one kind of stored KV.

Rows are those of a result file, kind by kind (`QualityRow` as plain values).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results.plots import Level, Point, histogram_plot, lines_plot
from fusionrag_integrations.bench.strategies import BASELINES

ResultRow = Mapping[str, Any]
Draw = Callable[[Path, Sequence[ResultRow], str], None]
"""Given the path without ending, the rows to show, and what they are of."""

_TENTHS = [f"{tenth * 10}-{tenth * 10 + 10}%" for tenth in range(10)]
LEVELS = ("full_attention", "full_reuse")  # what selectors are measured between


def draw_all(directory: Path, rows: Sequence[ResultRow]) -> None:
    """Every figure that the rows can fill."""
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for kv in dict.fromkeys(row["kv"] for row in rows if row["kv"] != "none"):
            for name in FIGURES:
                draw_figure(directory / f"{name}-{kind}-{kv}", name, rows, kind, kv)


def draw_figure(stem: Path, name: str, rows: Sequence[ResultRow], kind: str, kv: str) -> None:
    """The figure of that name, where the rows hold something to show in it."""
    shown = [row for row in rows if row["kind"] == kind and row["kv"] in ("none", kv)]
    # Ours first, so that it has one colour in all figures, and what selects nothing last.
    shown.sort(key=lambda row: (row["strategy"] in BASELINES, row["strategy"] != "fusionrag"))
    FIGURES[name](stem, shown, f"{kind}, {kv} KV")


def _f1_by_ratio(stem: Path, rows: Sequence[ResultRow], subject: str) -> None:
    _by_ratio(stem, [(row, (row["f1"], *row["ci"])) for row in rows], subject, "F1", "F1")


def _recovered_by_ratio(stem: Path, rows: Sequence[ResultRow], subject: str) -> None:
    known = [row for row in rows if row.get("recovered_ci")]
    _by_ratio(
        stem,
        [(row, (row["recovered"], *row["recovered_ci"])) for row in known],
        subject,
        "Divergence recovered",
        "share of full reuse's KL",
    )


def _by_ratio(
    stem: Path,
    values: Sequence[tuple[ResultRow, Level]],
    subject: str,
    measure: str,
    y_label: str,
) -> None:
    """values: rows, each with what is shown of it."""
    series: dict[str, list[Point]] = {}
    for row, value in values:
        if row["strategy"] not in BASELINES:
            series.setdefault(row["strategy"], []).append((row["ratio"], *value))
    if series:
        levels = {row["strategy"]: value for row, value in values if row["strategy"] in LEVELS}
        title = f"{measure} by share of recomputed tokens\n{subject}"
        lines_plot(stem, series, levels, title=title, x_label="recompute ratio", y_label=y_label)


def _f1_by_ttft(stem: Path, rows: Sequence[ResultRow], subject: str) -> None:
    series: dict[str, list[Point]] = {}
    for row in rows:
        if row["ttft_ms"] is not None:
            series.setdefault(row["strategy"], []).append((row["ttft_ms"], row["f1"], *row["ci"]))
    if series:
        title = f"F1 by time to first token\n{subject}"
        lines_plot(stem, series, {}, title=title, x_label="TTFT in ms", y_label="F1")


def _deviation(stem: Path, rows: Sequence[ResultRow], subject: str) -> None:
    looked = [row for row in rows if row["deviation"]]
    shown, ratio = _at_middle_ratio(looked)
    nothing = [row for row in looked if row["strategy"] == "full_reuse"]
    series: dict[str, list[Point]] = {
        row["strategy"]: [(layer, far, far, far) for layer, far in enumerate(row["deviation"])]
        for row in [*shown, *nothing]
    }
    if series:
        title = f"KV's distance from full attention's, {ratio:.0%} recomputed\n{subject}"
        y_label = "squared distance, relative"
        lines_plot(stem, series, {}, title=title, x_label="layer", y_label=y_label)


def _places(stem: Path, rows: Sequence[ResultRow], subject: str) -> None:
    shown, ratio = _at_middle_ratio([row for row in rows if row["places"]])
    if shown:
        histogram_plot(
            stem,
            {row["strategy"]: row["places"] for row in shown},
            _TENTHS,
            title=f"Where the selected tokens lie, at {ratio:.0%}\n{subject}",
            x_label="place in the chunk",
            y_label="share of selected tokens",
        )


FIGURES: Mapping[str, Draw] = {
    "f1-by-ratio": _f1_by_ratio,
    "recovered-by-ratio": _recovered_by_ratio,
    "f1-by-ttft": _f1_by_ttft,
    "deviation": _deviation,
    "places": _places,
}


def f1_by_neighbours(
    stem: Path, policies: Mapping[str, Mapping[int, ResultRow]], subject: str
) -> None:
    """A line a neighbour policy: F1 by how many neighbours KV is fused behind at most."""
    lines_plot(
        stem,
        {
            policy: [(count, row["f1"], *row["ci"]) for count, row in by_count.items()]
            for policy, by_count in policies.items()
        },
        {},
        title=f"F1 by number of neighbours\n{subject}",
        x_label="neighbours at most",
        y_label="F1",
    )


def _selecting(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Those of strategies whose ratio is a choice."""
    return [row for row in rows if row["strategy"] not in BASELINES]


def _at_middle_ratio(rows: Sequence[ResultRow]) -> tuple[list[ResultRow], float]:
    """Those at the middle one of the ratios that select something."""
    selecting = [row for row in _selecting(rows) if 0.0 < row["ratio"] < 1.0]
    ratios = sorted({row["ratio"] for row in selecting})
    middle = ratios[len(ratios) // 2] if ratios else 0.0
    return [row for row in selecting if row["ratio"] == middle], middle
