"""`fusionrag bench quality`, run in this process."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations.bench import quality as bench_quality
from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.strategies import DEFAULT_STRATEGIES
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.serving.settings import AnswerSettings
from tests.commands import Run, error_of, neighbour_counts, run_command, said

pytest.importorskip("rouge_score")

REQUIRED = {
    *("strategy", "kv", "ratio", "kind", "n", "em", "f1"),
    *("normalized_f1", "ci", "ttft_ms", "kept", "equal", "recovered", "agreement", "kl"),
}
NAMED = (
    *("full_attention", "full_reuse", "random", "cacheblend", "cache_craft"),
    *("epic", "fusionrag_paper", "fusionrag"),
)
BASELINES = NAMED[:2]


def points(result: Any) -> list[tuple[str, str, float, str]]:
    return [(r["strategy"], r["kv"], r["ratio"], r["kind"]) for r in result["rows"]]


def judged(question: Question, answer: str) -> float:
    """A judge for --judge: it is sure of itself."""
    assert question.answers
    return 0.25 if answer == answer.strip() else 0.0


NO_JUDGE = 7


class TestQuality:
    @pytest.mark.usefixtures("_small_demo")
    def test_the_demo_as_json(self) -> None:
        options = ("--dataset", "demo", "--limit", 1, "--strategies", "random,fusionrag")
        where = ("--ratios", "0,0.15", "--inspect", 1, "--json")
        result = said(run_command("bench", "quality", *options, *where))
        kinds = ("single_hop", "back_reference", "bridge", "all")
        assert Counter(point[3] for point in points(result)) == dict.fromkeys(kinds, 2 + 2 * 2 * 2)
        for row in result["rows"]:
            assert row.keys() >= REQUIRED
            assert row["n"] == (3 if row["kind"] == "all" else 1)
            assert 0.0 <= row["ci"][0] <= row["f1"] <= row["ci"][1] <= 1.0
            assert row["ttft_ms"] > 0.0
            assert row["timed"] == row["n"]  # the first of each kind
            assert 0.0 <= row["equal"] <= row["agreement"] <= 1.0
            assert row["kl"] >= 0.0
            assert len(row["deviation"]) == (0 if row["kv"] == "none" else 8)
        full = next(r for r in result["rows"] if r["kind"] == "all")
        assert (full["strategy"], full["kv"], full["ratio"]) == ("full_attention", "none", 1.0)
        assert full["f1"] >= 2 / 3  # the bundled model knows its demo
        assert (result["model"], result["dataset"], result["seed"]) == (MODEL_DIR.name, "demo", 0)

    def test_the_named_strategies_are_the_default(self, quality: Run, data: Path) -> None:
        assert DEFAULT_STRATEGIES == NAMED
        named = said(quality("--strategies", ",".join(NAMED), "--kv", "fused"))
        assert points(named) == [
            ("full_attention", "none", 1.0, "jsonl"),
            ("full_reuse", "isolated", 0.0, "jsonl"),
            ("full_reuse", "fused", 0.0, "jsonl"),
            *((name, "fused", 0.15, "jsonl") for name in NAMED if name not in BASELINES),
        ]

    def test_others_as_published_beside_the_same_selectors(self, quality: Run) -> None:
        names = "epic:published,epic,cache_craft:published,fusionrag"
        found = said(quality("--strategies", names, "--kv", "fused", "--limit", 1))
        assert points(found)[2:] == [
            ("epic", "isolated_as_stored", 0.15, "jsonl"),
            ("epic", "fused", 0.15, "jsonl"),
            ("cache_craft", "fused_as_stored", 0.15, "jsonl"),
            ("fusionrag", "fused", 0.15, "jsonl"),
        ]

    def test_an_answer_is_short_and_nothing_is_timed_unless_asked_for(self, quality: Run) -> None:
        result = said(quality("--limit", 1))
        assert {(row["ttft_ms"], row["speedup"], row["timed"]) for row in result["rows"]} == {
            (None, None, 0)
        }

    def test_a_missing_package_is_told_before_anything_is_done(
        self, quality: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "rouge_score", None)
        told = error_of(quality("--out", tmp_path / "run"))
        assert "needs rouge-score: pip install 'fusionrag-integrations[bench]'" in told
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("name", ["prophetkv", "infoflow"])
    def test_each_other_name_is_accepted(self, quality: Run, name: str) -> None:
        found = {point[0] for point in points(said(quality("--strategies", name, "--limit", 1)))}
        assert found == {"full_attention", "full_reuse", name}

    def test_without_strategies_every_default_is_asked(self, model_dir: Path, data: Path) -> None:
        where = ("--model", model_dir, "--dataset", "jsonl", "--data", data, "--limit", 1)
        found = said(run_command("bench", "quality", *where, "--kv", "isolated", "--json"))
        assert {point[0] for point in points(found)} == set(NAMED)
        assert {r for _, _, r, _ in points(found)} == {0.0, 0.05, 0.15, 1.0}  # full attention is 1
        assert len(points(found)) == 2 + 6 * 3

    def test_a_table_is_printed_without_json(self, model_dir: Path, data: Path) -> None:
        where = ("--model", model_dir, "--dataset", "jsonl", "--data", data, "--limit", 1)
        result = run_command("bench", "quality", *where, "--strategies", "epic", "--ratios", "0.1")
        assert result.exit_code == 0
        lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
        close, scores = lines[: 2 + 2 + 2], lines[2 + 2 + 2 :]
        assert len(close) == len(scores)
        for table in (close, scores):
            names = [line.split("|")[2].strip() for line in table[2:]]
            assert names == ["full_attention", "full_reuse", "epic", "epic"]

    def test_out_twice_goes_on(
        self, quality: Run, tmp_path: Path, asked: list[list[AnswerSettings]]
    ) -> None:
        once = said(quality("--out", tmp_path / "run"))
        # Two questions; full, reuse, and random over both KV.
        assert [len(runs) for runs in asked] == [4, 4]
        asked.clear()
        kept = {path.name for path in (tmp_path / "run").iterdir()}
        assert kept == {"store", "log.jsonl", "run.json", "table.md"}
        twice = said(quality("--out", tmp_path / "run"))
        assert asked == []
        assert twice["rows"] == once["rows"]
        assert json.loads((tmp_path / "run" / "run.json").read_text())["rows"] == once["rows"]

    def test_an_interrupt_says_so_and_goes_on(
        self, quality: Run, tmp_path: Path, asked: list[list[AnswerSettings]], monkeypatch: Any
    ) -> None:
        watched = bench_quality.answer_all

        def interrupted(*args: Any) -> Any:
            if len(asked) == 1:
                raise KeyboardInterrupt
            return watched(*args)

        monkeypatch.setattr(bench_quality, "answer_all", interrupted)
        result = quality("--out", tmp_path / "run")
        assert result.exit_code == 130
        assert "run the command again" in result.stderr
        monkeypatch.setattr(bench_quality, "answer_all", watched)
        asked.clear()
        assert said(quality("--out", tmp_path / "run"))["rows"][0]["n"] == 2
        assert len(asked) == 1  # the second question

    def test_a_judge_is_found_and_asked(self, quality: Run) -> None:
        result = said(quality("--judge", f"{__name__}:judged"))
        assert {row["judged"] for row in result["rows"]} == {0.25}
        assert result["judge"] == f"{__name__}:judged"

    def test_neighbours_are_as_the_policy_says(self, quality: Run, tmp_path: Path) -> None:
        said(quality("--neighbours", "similar:1", "--out", tmp_path / "run"))
        assert Counter(neighbour_counts(tmp_path / "run")) == {1: 9}


BAD = [
    (("--dataset", "squad"), ("squad", "hotpotqa", "jsonl", "hard")),
    (("--strategies", "random,turbo"), ("turbo", "fusionrag_paper", "prefix_cache")),
    (("--strategies", "random:published"), ("random:published", ":published", "infoflow")),
    (("--strategies", "prefix_cache"), ("full attention", "bench ttft")),
    (("--strategies", ""), ("Unknown strategies", "full_attention")),
    (("--ratios", "0.1;0.2"), ("--ratios", "0.1;0.2")),
    (("--ratios", "0.1,1.1"), ("--ratios", "1.1", "0.0<=x<=1.0")),
    (("--ratios", "-0.1"), ("--ratios", "0.0<=x<=1.0")),
    (("--ratios", "nan"), ("--ratios", "not a number")),
    (("--ratios", ""), ("--ratios",)),
    (("--kv", "fused,none"), ("--kv none", "isolated, fused")),
    (("--kv", ""), ("--kv", "isolated, fused")),
    (("--neighbours", "nearest"), ("nearest", "predecessors", "wrong")),
    (("--neighbours", "similar:-2"), ("similar:-2",)),
    (("--kinds", "bridge"), ("--kinds", "jsonl")),
    (("--judge", "no_such_module:judge"), ("--judge", "no_such_module:judge", "MODULE:NAME")),
    (("--judge", "math:no_such"), ("--judge", "math:no_such")),
    (("--judge", "math"), ("--judge", "'math'")),
    (("--limit", "0"), ("--limit",)),
    (("--inspect", "-1"), ("--inspect",)),
    (("--data", "no/such/file.jsonl"), ("--data", "no/such/file.jsonl")),
]


class TestBadOptions:
    @pytest.mark.parametrize(("options", "words"), BAD, ids=[" ".join(o) for o, _ in BAD])
    def test_each_is_one_clear_error(
        self, quality: Run, options: tuple[str, ...], words: tuple[str, ...]
    ) -> None:
        error = error_of(quality(*options))
        assert all(word in error for word in words)

    @pytest.mark.parametrize("command", [("bench", "quality"), ("calibrate", "--out", ".")])
    def test_a_published_data_set_needs_its_file(self, command: tuple[str, ...]) -> None:
        result = run_command(*command, "--dataset", "hotpotqa")
        assert "give it with --data" in error_of(result)

    def test_an_unknown_kind_of_question(self) -> None:
        error = error_of(run_command("bench", "quality", "--kinds", "riddle"))
        assert "riddle" in error
        assert "back_reference" in error

    def test_a_judge_by_a_relative_name(self, quality: Run) -> None:
        assert "--judge" in error_of(quality("--judge", ".judges:judge"))

    def test_a_judge_that_cannot_be_called(self, quality: Run) -> None:
        assert "--judge" in error_of(quality("--judge", f"{__name__}:NO_JUDGE"))
