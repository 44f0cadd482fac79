"""`fusionrag bench quality` and `fusionrag calibrate`, run in this process."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fusionrag_integrations import FusionEngine, calibrate, ingest
from fusionrag_integrations.bench import break_even, files
from fusionrag_integrations.bench import quality as bench_quality
from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.shared_pass import answer_all
from fusionrag_integrations.bench.strategies import DEFAULT_STRATEGIES
from fusionrag_integrations.calibration import CALIBRATION_FILE, read_break_even
from fusionrag_integrations.catalog import CATALOG_FILE, Catalog
from fusionrag_integrations.cli import main
from fusionrag_integrations.demo import MODEL_DIR, suites, tasks
from fusionrag_integrations.types import AnswerSettings, Calibration, Prompt
from tests.conftest import all_records, town

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
Run = Callable[..., Result]


def run_command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def said(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def error_of(result: Result) -> str:
    """The line that a refused command says; no traceback of ours."""
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.stderr.split()).split("rror:", 1)[1]


def points(result: Any) -> list[tuple[str, str, float, str]]:
    return [(r["strategy"], r["kv"], r["ratio"], r["kind"]) for r in result["rows"]]


def judged(question: Question, answer: str) -> float:
    """A judge for --judge: it is sure of itself."""
    assert question.answers
    return 0.25 if answer == answer.strip() else 0.0


NO_JUDGE = 7


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take a second each run; bench/test_figures.py looks at them."""
    monkeypatch.setattr(files, "draw_all", lambda directory, rows: None)


@pytest.fixture
def _small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small world, and short prompts."""
    monkeypatch.setattr(suites, "LEAST_DOCUMENTS", 12)
    monkeypatch.setattr(tasks, "CHUNKS", 8)


def write_rows(path: Path, first: int = 0) -> Path:
    rows = []
    for number in (first, first + 1):
        passages = [
            {"title": f"Town {n}, part {part}", "text": text}
            for n in (number, number + 1)
            for part, text in enumerate(town(n).text.split("\n\n"))
        ]
        question = f"Which house stands in town number {number}?"
        rows.append(
            {"id": str(number), "question": question, "answers": ["7"], "passages": passages}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two questions over six chunks each."""
    return write_rows(tmp_path / "towns.jsonl")


@pytest.fixture
def quality(model_dir: Path, data: Path) -> Run:
    """`bench quality --json` with the tiny model; later options win."""

    def run(*options: object) -> Result:
        where = ("--model", model_dir, "--dataset", "jsonl", "--data", data)
        few = ("--strategies", "random", "--ratios", "0.15", "--inspect", 0, "--json")
        return run_command("bench", "quality", *where, *few, *options)

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[AnswerSettings]]:
    """The settings under which each question was answered."""
    seen: list[list[AnswerSettings]] = []

    def watched(engine: FusionEngine, prompt: Prompt, runs: Any, *rest: Any) -> Any:
        seen.append(list(runs))
        return answer_all(engine, prompt, runs, *rest)

    monkeypatch.setattr(bench_quality, "answer_all", watched)
    return seen


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
        assert {lead["other"] for lead in named["leads"]} == set(NAMED[2:-1])
        assert named["leads_published"] == []

    def test_others_as_published_beside_the_same_selectors(self, quality: Run) -> None:
        names = "epic:published,epic,cache_craft:published,fusionrag"
        found = said(quality("--strategies", names, "--kv", "fused", "--limit", 1))
        assert points(found)[2:] == [
            ("epic", "isolated_as_stored", 0.15, "jsonl"),
            ("epic", "fused", 0.15, "jsonl"),
            ("cache_craft", "fused_as_stored", 0.15, "jsonl"),
            ("fusionrag", "fused", 0.15, "jsonl"),
        ]
        assert [(lead["other"], lead["kv"]) for lead in found["leads_published"]] == [
            ("epic", "isolated_as_stored"),
            ("cache_craft", "fused_as_stored"),
        ]
        assert [(lead["other"], lead["kv"]) for lead in found["leads"]] == [("epic", "fused")]

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


def neighbour_counts(run: Path) -> list[int]:
    with Catalog.open(run / "store" / CATALOG_FILE) as catalog:
        return [len(catalog.neighbours(r.chunk.id)) for r in all_records(catalog)]


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


class TestAnotherRunsDirectory:
    """A directory belongs to one run; another one is refused and changes nothing in it."""

    @pytest.fixture(scope="class")
    def made(self, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("made")
        where = ("--model", model_dir, "--dataset", "jsonl", "--data", write_rows(path / "data"))
        few = ("--strategies", "random", "--ratios", "0.15", "--inspect", 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "draw_all", lambda directory, rows: None)
            result = run_command("bench", "quality", *where, *few, "--out", path / "run")
        assert result.exit_code == 0
        return path / "run"

    @pytest.fixture
    def run(self, made: Path, tmp_path: Path) -> Path:
        return shutil.copytree(made, tmp_path / "run")

    def test_the_same_run_is_let_in(
        self, quality: Run, run: Path, asked: list[list[AnswerSettings]]
    ) -> None:
        said(quality("--out", run))
        assert asked == []

    def test_a_ratio_more_is_added(
        self, quality: Run, run: Path, asked: list[list[AnswerSettings]]
    ) -> None:
        found = said(quality("--out", run, "--ratios", "0.15,0.2"))
        assert {row["ratio"] for row in found["rows"] if row["strategy"] == "random"} == {0.15, 0.2}
        assert {settings.ratio for settings in asked[0]} == {1.0, 0.2}  # full attention, and it

    @pytest.mark.parametrize(
        "options",
        [("--seed", 1), ("--neighbours", "wrong"), ("--limit", 1)],
        ids=str,
    )
    def test_it_is_refused_by_its_log(
        self, quality: Run, run: Path, options: tuple[object, ...]
    ) -> None:
        error = error_of(quality("--out", run, *options))
        assert str(run / "log.jsonl") in error
        assert "another run" in error

    def test_other_questions_of_the_same_number(
        self, quality: Run, run: Path, tmp_path: Path
    ) -> None:
        others = write_rows(tmp_path / "others.jsonl", first=40)
        error_of(quality("--out", run, "--data", others))

    def test_its_store_stays_as_it_was(self, quality: Run, run: Path, tmp_path: Path) -> None:
        before = len(neighbour_counts(run))
        others = write_rows(tmp_path / "others.jsonl", first=40)
        assert quality("--out", run, "--data", others, "--seed", 1).exit_code == 1
        assert len(neighbour_counts(run)) == before

    def test_an_ingest_that_was_interrupted_under_other_neighbours(
        self, quality: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fuse, fused = ingest.fuse_chunks, []

        def interrupted(*args: Any) -> Any:
            if len(fused) == 3:
                raise KeyboardInterrupt
            made = fuse(*args)
            fused.extend(made)
            return made

        monkeypatch.setattr(ingest, "PASS_TOKENS", 1)
        monkeypatch.setattr(ingest, "fuse_chunks", interrupted)
        run = tmp_path / "run"
        assert quality("--out", run).exit_code == 130
        monkeypatch.undo()
        result = quality("--out", run, "--neighbours", "similar:1")
        # Either it is refused, or everything is fused as asked for.
        assert result.exit_code == 1 or set(neighbour_counts(run)) == {1}


class TestCalibrate:
    @pytest.fixture(autouse=True)
    def _few_lengths(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(break_even, "CONTEXTS", (150, 200))
        monkeypatch.setattr(break_even, "REPEAT", 1)

    @pytest.mark.usefixtures("_small_demo")
    def test_the_engine_uses_what_was_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(calibrate, "MAX_TOKENS", 2)  # to be fast
        monkeypatch.setattr(calibrate, "MOST_LAYERS", 1)
        options = ("--dataset", "demo", "--limit", 1, "--out", tmp_path, "--json")
        result = said(run_command("calibrate", *options))
        assert (result["measured"]["questions"], result["measured"]["dataset"]) == (3, "demo")
        assert result["measured"]["seed"] == 1_000_000
        assert [t["layers"] for t in result["measured"]["trials"][:8]] == [[i] for i in range(8)]
        engine = FusionEngine.from_pretrained(MODEL_DIR, store=tmp_path)
        names = ("layers", "whole_sentences", "sensitivity")
        layers, *signals = (result[name] for name in names)
        assert engine.calibration == Calibration(tuple(layers), *signals)
        assert result["break_even"].keys() == result["measured"]["speed"].keys() == {"cpu"}
        assert result["break_even"]["cpu"] in (0, 150, 200, 151, 201)
        content = json.loads((tmp_path / CALIBRATION_FILE).read_text())
        assert content["calibrations"] == {engine.corpus.catalog.info.signature: result}

    def test_in_words(self, model_dir: Path, data: Path, tmp_path: Path) -> None:
        where = ("--model", model_dir, "--dataset", "jsonl", "--data", data, "--out", tmp_path)
        result = run_command("calibrate", *where)
        assert result.exit_code == 0
        assert str(tmp_path / CALIBRATION_FILE) in result.stdout
        found = FusionEngine.from_pretrained(model_dir, store=tmp_path).calibration
        assert found is not None
        assert f"Layers {', '.join(map(str, found.layers))}" in result.stdout
        assert ("whole sentences" in result.stdout) == found.whole_sentences
        assert f"power of {found.sensitivity:g}" in result.stdout
        signature = FusionEngine.from_pretrained(
            model_dir, store=tmp_path
        ).corpus.catalog.info.signature
        tokens = read_break_even(tmp_path / CALIBRATION_FILE, signature, "cpu")
        assert f"On cpu reuse pays from {tokens} tokens on." in result.stdout

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--limit", 1), ("2 questions at least; got 1",)),
            (("--out", "no/such/directory"), ("no/such/directory",)),
            (("--dataset", "squad"), ("squad", "hotpotqa")),
        ],
    )
    def test_refusals(
        self,
        model_dir: Path,
        data: Path,
        tmp_path: Path,
        options: tuple[object, ...],
        words: tuple[str, ...],
    ) -> None:
        where = ("--model", model_dir, "--dataset", "jsonl", "--data", data, "--out", tmp_path)
        error = error_of(run_command("calibrate", *where, *options))
        assert all(word in error for word in words)
        assert not (tmp_path / CALIBRATION_FILE).exists()

    def test_out_is_required(self) -> None:
        result = run_command("calibrate")
        assert result.exit_code == 2
        assert "--out" in error_of(result)


class TestTTFT:
    def run(self, *options: object) -> Result:
        return run_command("bench", "ttft", "--context", 200, "--repeat", 1, *options)

    def test_as_json(self, model_dir: Path) -> None:
        result = said(self.run("--model", model_dir, "--ratios", "0,0.15", "--json"))
        assert [(row["strategy"], row["ratio"], row["kv"]) for row in result["rows"]] == [
            ("full_attention", 1.0, "none"),
            ("fusionrag", 0.0, "host"),
            ("fusionrag", 0.15, "host"),
        ]
        assert {"hardware", "device", "dtype", "dense_attention", "versions"} <= result.keys()

    def test_as_a_table_of_the_demo(self) -> None:
        result = self.run("--strategies", "epic,random", "--ratios", "0.1", "--kv", "disk")
        assert result.exit_code == 0, result.stderr
        lines = [line.split("|") for line in result.stdout.splitlines() if line.startswith("|")]
        assert [line[2].strip() for line in lines[2:]] == ["full_attention", "epic", "random"]
        assert len({len(line) for line in lines}) == 1

    def test_a_prefix_cache_is_timed(self, model_dir: Path) -> None:
        given = ("--model", model_dir, "--strategies", "prefix_cache,epic:published", "--json")
        result = said(self.run(*given, "--ratios", "0.1"))
        names = [row["strategy"] for row in result["rows"]]
        assert names == ["full_attention", "prefix_cache", "epic"]

    @pytest.mark.parametrize(
        ("options", "what"),
        [
            (("--config", "gpt"), "'gpt'; known are qwen2.5-0.5b"),
            (("--config", "demo", "--model", "x"), "not both"),
            (("--ratios", "2"), "'--ratios': 2.0 is not in the range 0.0<=x<=1.0"),
            (("--context", "many"), "'--context': 'many' is not a valid integer range"),
            (("--context", "0"), "'--context': 0 is not in the range 1<=x<="),
            (("--strategies", "best"), "Unknown strategies best"),
            (("--dtype", "int3"), "Unknown dtype 'int3'"),
            (("--device", "tpu9"), "Unknown device 'tpu9'"),
        ],
    )
    def test_errors_name_what_was_given(self, options: tuple[str, ...], what: str) -> None:
        assert what in error_of(self.run(*options))


def test_the_kernel_as_json_and_as_a_table() -> None:
    few = ("bench", "kernel", "--keys", 100, "--heads", 4, "--kv-heads", 2, "--repeat", 1)
    rows = said(run_command(*few, "--head-size", 16, "--ratios", "0.5,1", "--json"))["rows"]
    assert [row["ratio"] for row in rows] == [0.5, 1.0]
    lines = run_command(*few).stdout.splitlines()
    assert len([line for line in lines if line.startswith("| 100 |")]) == 3
    assert "--heads 4 is no multiple of --kv-heads 3" in error_of(
        run_command(*few, "--kv-heads", 3)
    )


def test_what_ingest_costs(model_dir: Path) -> None:
    few = ("bench", "offline", "--model", model_dir, "--chunk-tokens", 30, "--repeat", 1)
    result = said(run_command(*few, "--neighbours", 2, "--json"))
    assert (result["chunk_tokens"], result["neighbours"]) == (30, 2)
    assert "behind 10 neighbours" in run_command(*few).stdout


class TestStore:
    few = ("bench", "store", "--context", 200, "--repeat", 1, "--records", 20, "--ratio", 0)

    def test_as_json(self, model_dir: Path) -> None:
        result = said(run_command(*self.few, "--model", model_dir, "--gap-ms", 20, "--json"))
        assert (result["format"], result["gap_ms"], result["repeat"]) == ("float32", 20.0, 1)
        assert [row["files"] for row in result["load"]["rows"]] == ["cached", "cached", "cold"]
        assert result["lookup"]["records"] == 20
        assert {row["tier"] for row in result["rows"]} == {
            *("cold disk", "warm disk", "host", "device")
        }

    def test_as_a_table_of_some_parts(self, model_dir: Path) -> None:
        some = ("--model", model_dir, "--parts", "load", "--format", "int4")
        lines = run_command(*self.few, *some).stdout.splitlines()
        assert len([line for line in lines if line.startswith("| c")]) == 3
        assert not [line for line in lines if "prefetch" in line or "lookups" in line]

    @pytest.mark.parametrize(
        ("options", "what"),
        [
            (("--parts", "speed"), "Unknown parts speed; choose among load, lookup, prefetch"),
            (("--format", "int3"), "'float32', 'float16', 'bfloat16', 'int8', 'int4'"),
            (("--context", "5000"), "5000 tokens is too long"),
            (("--gap-ms", "-1"), "--gap-ms"),
        ],
    )
    def test_errors_name_what_was_given(
        self, model_dir: Path, options: tuple[str, ...], what: str
    ) -> None:
        assert what in error_of(run_command(*self.few, "--model", model_dir, *options))


def test_what_keeping_new_chunks_saves() -> None:
    options = ("--questions", "200", "--known", "50", "--shared", "20")
    result = CliRunner().invoke(main, ["bench", "traffic", *options, "--json"])
    saved = json.loads(result.stdout)
    assert saved["traffic"]["questions"] == 200
    words = CliRunner().invoke(main, ["bench", "traffic", *options]).stdout
    assert f"({saved['storage_saved']:.0%} less)" in words
