"""What a run's figures show."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results.figures import draw_all, draw_figure, f1_by_neighbours
from fusionrag_integrations.bench.closeness import Closeness
from fusionrag_integrations.bench.inspection import Inspection
from fusionrag_integrations.bench.measurement import Measurement
from fusionrag_integrations.bench.strategies import Strategy, make_strategies
from fusionrag_integrations.bench.summary import summarise

pytest.importorskip("matplotlib")

NAMES = ("full_attention", "prefix_cache", "full_reuse", "random", "fusionrag")
STRATEGIES = make_strategies(NAMES, (0.0, 0.1, 0.15, 0.2), ("isolated", "fused"))


def measured(strategy: Strategy, *, looked_at: bool = True) -> Measurement:
    counts = (4,) + (0,) * 9 if 0.0 < strategy.ratio < 1.0 else (0,) * 10
    look = Inspection((0.0, 0.5, 0.25), 0.2, 0.3, counts)
    close = Closeness(False, 5, 4, 4, 1.0 - strategy.ratio, 1, 0.0)
    return Measurement(
        *(0, "riddle", strategy, "an answer", True, 0.0, 0.5, 0.2, close, 12, 0.5),
        ttft_ms=10.0 if looked_at else None,
        inspection=look if looked_at and strategy.placed != "none" else None,
    )


ROWS: list[dict[str, Any]] = [asdict(row) for row in summarise([measured(s) for s in STRATEGIES])]


def drawn(tmp_path: Path, name: str, kv: str) -> tuple[set[str], str]:
    """The strategies that a figure names, and all that it says."""
    draw_figure(tmp_path / "figure", name, ROWS, "riddle", kv)
    text = (tmp_path / "figure.svg").read_text()
    return {n for n in NAMES if f">{n}<" in text}, text


@pytest.mark.parametrize("kv", ["isolated", "fused"])
@pytest.mark.parametrize(
    ("name", "strategies", "said"),
    [
        ("f1-by-ratio", {*NAMES} - {"prefix_cache"}, "F1 by share of recomputed tokens"),
        ("recovered-by-ratio", {*NAMES} - {"prefix_cache"}, "share of full reuse"),
        ("f1-by-ttft", {*NAMES}, "TTFT in ms"),
        ("deviation", {"full_reuse", "random", "fusionrag"}, "15% recomputed"),
        ("places", {"random", "fusionrag"}, "selected tokens lie, at 15%"),
    ],
)
def test_each_shows_the_strategies_on_one_kv(
    tmp_path: Path, name: str, strategies: set[str], said: str, kv: str
) -> None:
    shown, text = drawn(tmp_path, name, kv)
    assert shown == strategies
    assert all(text.count(f">{name}<") == 1 for name in strategies)
    assert f"riddle, {kv} KV" in text
    assert said in text


def test_what_was_not_looked_at_is_not_drawn(tmp_path: Path) -> None:
    rows = summarise([measured(s, looked_at=False) for s in STRATEGIES[:3]])
    draw_all(tmp_path, [asdict(row) for row in rows])
    assert list(tmp_path.glob("*.png")) == []


def test_results_of_before_it_was_measured_have_no_figure_of_what_is_recovered(
    tmp_path: Path,
) -> None:
    older = [
        {name: value for name, value in row.items() if not name.startswith("recovered")}
        for row in ROWS
    ]
    for name in ("f1-by-ratio", "recovered-by-ratio"):
        draw_figure(tmp_path / name, name, older, "riddle", "fused")
    assert {path.name for path in tmp_path.glob("*.png")} == {"f1-by-ratio.png"}


def test_a_line_a_neighbour_policy(tmp_path: Path) -> None:
    row = {"f1": 0.5, "ci": (0.4, 0.6)}
    policies = {"similar": {0: row, 5: row}, "predecessors": {2: row}}
    f1_by_neighbours(tmp_path / "figure", policies, "riddle")
    text = (tmp_path / "figure.svg").read_text()
    assert all(f">{name}<" in text for name in policies)
    assert "neighbours at most" in text
