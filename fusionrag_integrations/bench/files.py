"""A finished run as files: run.json, table.md, and figures."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fusionrag_integrations.bench.plots import Point, histogram_plot, lines_plot
from fusionrag_integrations.bench.summary import Lead, QualityRow
from fusionrag_integrations.bench.tables import quality_markdown

PLACES = [f"{tenth * 10}-{tenth * 10 + 10}%" for tenth in range(10)]


def run_result(
    identity: Mapping[str, Any], rows: Sequence[QualityRow], gaps: Sequence[Lead]
) -> dict[str, Any]:
    """What a run measured, where and with what, as plain values."""
    return dict(identity) | {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": _hardware(),
        "versions": {name: version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()},
        "rows": [asdict(row) for row in rows],
        "leads": [asdict(gap) for gap in gaps],
    }


def write_run(directory: Path, result: Mapping[str, Any], rows: Sequence[QualityRow]) -> None:
    """run.json, table.md, and for each kind of question F1 against ratio and against TTFT, and
    where in their chunks the selected tokens lie.
    """
    (directory / "run.json").write_text(json.dumps(result, indent=2) + "\n")
    (directory / "table.md").write_text(quality_markdown(rows) + "\n")
    for kind in dict.fromkeys(row.kind for row in rows):
        draw(directory, [row for row in rows if row.kind == kind], kind)


def draw(directory: Path, rows: Sequence[QualityRow], kind: str) -> None:
    """The figures of one kind of question."""
    by_ratio: dict[str, list[Point]] = {}
    by_ttft: dict[str, list[Point]] = {}
    for row in rows:
        by_ratio.setdefault(row.label, []).append((row.ratio, row.f1, *row.ci))
        by_ttft.setdefault(row.label, []).append((row.ttft_ms, row.f1, *row.ci))
    lines_plot(
        directory / f"f1-by-ratio-{kind}",
        by_ratio,
        title=f"{kind}: F1 by share of recomputed tokens",
        x_label="recompute ratio",
        y_label="F1",
    )
    lines_plot(
        directory / f"f1-by-ttft-{kind}",
        by_ttft,
        title=f"{kind}: F1 by time to first token",
        x_label="TTFT in ms",
        y_label="F1",
    )
    placed = [row for row in rows if row.places and 0.0 < row.ratio < 1.0]
    if placed:
        middle = sorted({row.ratio for row in placed})[len({row.ratio for row in placed}) // 2]
        histogram_plot(
            directory / f"places-{kind}",
            {row.label: row.places for row in placed if row.ratio == middle},
            PLACES,
            title=f"{kind}: where the selected tokens lie, at {middle:.0%}",
            x_label="place in the chunk",
            y_label="share of selected tokens",
        )


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
