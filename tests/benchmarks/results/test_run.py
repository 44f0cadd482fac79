"""What is added to the directory of a run: leads over other strategies, and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.results.figures import FIGURES
from fusionrag_integrations.bench.files import run_result, write_run
from fusionrag_integrations.bench.log import append, open_log
from fusionrag_integrations.bench.strategies import make_strategies
from fusionrag_integrations.bench.summary import summarise
from fusionrag_integrations.bench.tables import quality_markdown
from tests.bench.test_files import IDENTITY, LOG, NAMES, ROWS
from tests.commands import run_command, write_rows


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """As `fusionrag bench quality --out` leaves it."""
    path = tmp_path / "run"
    path.mkdir()
    open_log(path / "log.jsonl", IDENTITY)
    append(path / "log.jsonl", LOG)
    write_run(path, run_result(IDENTITY, ROWS), quality_markdown(ROWS))
    return path


def added(run: Path) -> Any:
    assert run_command("leads", run, command=main).exit_code == 0
    return json.loads((run / "run.json").read_text())


class TestLeads:
    def test_by_how_much_ours_leads(self, run: Path) -> None:
        found = added(run)["leads"]
        assert len(found) == 2 * 2 * 3 * 3  # two others, two KV, three ratios, two kinds and all
        assert {lead["other"] for lead in found} == {"random", "epic"}
        assert {"kind", "kv", "ratio", "mean", "low", "high"} <= found[0].keys()
        assert found[0]["recovered"].keys() == {"mean", "low", "high"}

    def test_by_how_much_ours_leads_others_as_published(self, run: Path) -> None:
        found = added(run)["leads_published"]
        assert len(found) == 3 * 3
        assert {(lead["other"], lead["kv"]) for lead in found} == {("epic", "isolated_as_stored")}
        assert found[0]["recovered"].keys() == found[0]["kept"].keys() == {"mean", "low", "high"}

    def test_all_else_stays(self, run: Path) -> None:
        before, log = json.loads((run / "run.json").read_text()), (run / "log.jsonl").read_text()
        assert added(run).items() >= before.items()
        assert (run / "log.jsonl").read_text() == log

    def test_of_the_rows_alone(self, run: Path) -> None:
        """The log may hold what a run before asked."""
        fewer = make_strategies(NAMES, (0.15,), ("fused",))
        rows = summarise([m for m in LOG if m.strategy in fewer])
        write_run(run, run_result(IDENTITY, rows), quality_markdown(rows))
        found = added(run)
        assert {(lead["kv"], lead["ratio"]) for lead in found["leads"]} == {("fused", 0.15)}
        assert len(found["leads_published"]) == 3


def test_of_a_run_of_the_command(model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    where = ("--model", model_dir, "--dataset", "jsonl", "--data", write_rows(tmp_path / "data"))
    few = ("--ratios", "0.15", "--inspect", 0, "--kv", "fused", "--limit", 1)
    names = "epic:published,epic,cache_craft:published,fusionrag"
    options = (*where, *few, "--strategies", names, "--out", tmp_path / "run")
    assert run_command("bench", "quality", *options).exit_code == 0
    found = added(tmp_path / "run")
    assert [(lead["other"], lead["kv"]) for lead in found["leads_published"]] == [
        ("epic", "isolated_as_stored"),
        ("cache_craft", "fused_as_stored"),
    ]
    assert [(lead["other"], lead["kv"]) for lead in found["leads"]] == [("epic", "fused")]


def test_figures_of_each_kind_of_question_on_each_kv(run: Path) -> None:
    pytest.importorskip("matplotlib")
    before = {path.name for path in run.iterdir()}
    assert run_command("figures", run, command=main).exit_code == 0
    kinds = ("single", "bridge", "all")
    placed = ("isolated", "fused", "isolated_as_stored")
    views = [f"{kind}-{kv}" for kind in kinds for kv in placed]
    stems = {f"{name}-{view}" for name in FIGURES for view in views}
    figures = {f"{stem}.{ending}" for stem in stems for ending in ("png", "svg")}
    assert {path.name for path in run.iterdir()} - before == figures
