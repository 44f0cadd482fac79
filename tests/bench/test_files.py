"""A finished run on disk: what run.json and the table hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusionrag_integrations.bench.closeness import Closeness
from fusionrag_integrations.bench.files import run_result, write_run
from fusionrag_integrations.bench.inspection import Inspection
from fusionrag_integrations.bench.measurement import Measurement
from fusionrag_integrations.bench.strategies import Strategy, make_strategies
from fusionrag_integrations.bench.summary import summarise
from fusionrag_integrations.bench.tables import quality_markdown

REQUIRED = {
    *("strategy", "kv", "ratio", "kind", "n", "em", "f1"),
    *("normalized_f1", "ci", "ttft_ms"),
}
CLOSENESS = {
    *(
        f"{name}{more}"
        for name in ("kept", "equal", "recovered", "agreement", "kl")
        for more in ("", "_ci")
    ),
    *("kl_median", "kl_worst_tenth", "kl_answer"),
}
NAMES = ("full_attention", "full_reuse", "random", "epic", "epic:published", "fusionrag")
STRATEGIES = make_strategies(NAMES, (0.1, 0.15, 0.2), ("isolated", "fused"))
IDENTITY = {"model": "tiny", "signature": "ab12", "dataset": "demo", "seed": 3}


def log_of(*kinds: str) -> list[Measurement]:
    def measurement(number: int, kind: str, place: int, strategy: Strategy) -> Measurement:
        reuses = strategy.placed != "none"
        counts = tuple(4 if i == place % 10 else 0 for i in range(10))
        look = Inspection((0.0, 0.5), 0.2, 0.3, counts if strategy.ratio else (0,) * 10)
        close = Closeness(False, 5, 4, 4, 0.5 + place, 2, 0.25)
        return Measurement(
            *(number, kind, strategy, "an answer", True, 0.0, 0.1 * place, 0.2, close, 12, 0.5),
            ttft_ms=10.0 + place,
            inspection=look if reuses else None,
        )

    return [
        measurement(number, kind, place, strategy)
        for number, kind in enumerate(k for k in kinds for _ in range(2))
        for place, strategy in enumerate(STRATEGIES)
    ]


LOG = log_of("single", "bridge")
ROWS = summarise(LOG)


class TestResult:
    result = run_result(IDENTITY, ROWS)

    def test_it_survives_json(self) -> None:
        again = json.loads(json.dumps(self.result, allow_nan=False))
        assert [list(row) for row in again["rows"]] == [list(row) for row in self.result["rows"]]
        assert again["rows"][0]["ci"] == list(ROWS[0].ci)

    def test_each_row_has_what_readers_need(self) -> None:
        assert len(self.result["rows"]) == len(STRATEGIES) * 3  # two kinds, and all
        for row, summary in zip(self.result["rows"], ROWS, strict=True):
            assert row.keys() >= REQUIRED | CLOSENESS
            assert all(row[name] == getattr(summary, name) for name in REQUIRED)

    def test_it_says_what_was_measured_and_where(self) -> None:
        assert self.result.items() >= IDENTITY.items()
        assert self.result["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
        assert self.result["versions"].keys() == {"torch", "transformers", "python"}
        assert self.result["hardware"]
        year, month, day = map(int, self.result["date"].split("-"))
        assert year >= 2025
        assert (1 <= month <= 12, 1 <= day <= 31) == (True, True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    write_run(path, run_result(IDENTITY, ROWS), quality_markdown(ROWS))
    return path


class TestFiles:
    def test_all_of_them(self, written: Path) -> None:
        assert {path.name for path in written.iterdir()} == {"run.json", "table.md"}

    def test_run_json_is_the_result(self, written: Path) -> None:
        result = run_result(IDENTITY, ROWS)
        assert json.loads((written / "run.json").read_text()) == json.loads(json.dumps(result))

    def test_both_tables_have_a_line_a_row(self, written: Path) -> None:
        close, scores = (written / "table.md").read_text().strip().split("\n\n")
        for table, values in (
            (close, {"kept": "kept", "of": "kept_of", "recovered": "recovered", "KL": "kl"}),
            (scores, {"F1": "f1", "ROUGE-1": "rouge1"}),
        ):
            heading, rule, *lines = (
                [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
            )
            assert len(heading) == len(rule)
            assert [tuple(c[:3]) for c in lines] == [(r.kind, r.strategy, r.kv) for r in ROWS]
            assert [c[4] for c in lines] == [str(r.n) for r in ROWS]
            for name, attribute in values.items():
                shown = [float(c[heading.index(name)].split(" (")[0]) for c in lines]
                expected = [getattr(r, attribute) for r in ROWS]
                assert shown == pytest.approx(expected, abs=0.0051)
            assert {len(c) for c in lines} == {len(heading)}

    def test_a_figure_that_is_not_there_is_an_empty_cell(self) -> None:
        row = replace(ROWS[0], kept=None, kept_ci=None, kl_answer=None, ttft_ms=None, speedup=None)
        close, scores = quality_markdown([row]).split("\n\n")
        assert close.splitlines()[-1].split("|")[6].strip() == ""
        assert close.splitlines()[-1].endswith("|  |")
        assert scores.splitlines()[-1].endswith("|  |  |")
