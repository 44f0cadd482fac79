"""The comparison of prefixes runs through every route, and its results on file hold together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusionrag_integrations import demo
from tests.small_demo import write_few_documents
from tests.test_examples import run_here

RESULTS = Path(__file__).parent.parent.parent / "docs" / "results" / "prefixes.json"


@pytest.mark.slow
def test_every_route_is_asked_under_every_strategy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_few_documents(tmp_path / "corpus.jsonl", a_kind=1, others=20)
    monkeypatch.setattr(demo, "CORPUS_PATH", corpus)
    few = ("--limit", 1, "--json", tmp_path / "rows.json")
    run_here("prompt_prefixes.py", "--store", tmp_path / "store", *few)
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    on_file = json.loads(RESULTS.read_text())["rows"]
    assert [(r["route"], r["strategy"]) for r in rows] == [
        (r["route"], r["strategy"]) for r in on_file
    ]
    assert {row["n"] for row in rows} == {3}
    assert all(f"| {row['route']} |" in printed for row in rows)
    assert all(row["f1"] >= 0.6 for row in rows if row["strategy"] == "full_attention")


def test_no_prefix_costs_more_than_the_target() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    scores = [row["f1"] for row in rows if row["strategy"] == "fusionrag_15"]
    assert len(scores) >= 4
    assert max(scores) - min(scores) <= 0.05
