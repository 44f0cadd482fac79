"""`fusionrag check`, run in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fusionrag_integrations.cli import main
from fusionrag_integrations.execution.recompute import PlacedPrompt
from tests.conftest import town
from tests.test_check import forgetful


def run_command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def said(result: Result) -> Any:
    return json.loads(result.stdout)


def error_of(result: Result) -> str:
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)  # no traceback of ours
    return " ".join(result.stderr.split())


def listed(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")
    for number in range(3):
        (path / f"town-{number}.txt").write_text(town(number).text)
    return path


@pytest.fixture(scope="module")
def store(model_dir: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was made by the command; nobody changes it."""
    path = tmp_path_factory.mktemp("made") / "store"
    made = run_command(
        *("index", files, "--store", path, "--model", model_dir, "--chunk-tokens", 48)
    )
    assert made.exit_code == 0, made.output
    return path


def test_json_says_all(store: Path, files: Path) -> None:
    result = run_command(
        *("check", "--store", store, "--questions", 2, "--estimate", files, "--json")
    )
    assert result.exit_code == 0
    report = said(result)
    assert set(report) == {
        *(
            "model",
            "facts",
            "exact",
            "deviation",
            "rows",
            "verdict",
            "disk",
            "estimate",
            "questions",
        ),
        *("prompt_tokens", "without_kv"),
    }
    assert (report["model"], report["exact"], report["questions"]) == ("tiny-llama0", True, 2)
    assert len(report["rows"]) == 4
    for row in report["rows"]:
        assert set(row) == {
            *("kv", "ratio", "equal", "equal_interval", "recovered", "recovered_interval"),
            *("agreement", "speedup"),
        }
        assert row["equal_interval"][0] <= row["equal"] <= row["equal_interval"][1]
    assert set(report["disk"]) == {
        *("bytes", "chunks", "tokens", "bytes_per_chunk", "bytes_per_token")
    }
    assert report["estimate"]["chunks"] == report["disk"]["chunks"] == 9
    assert report["estimate"]["bytes"] == pytest.approx(report["disk"]["bytes"], rel=0.05)
    assert report["estimate"]["seconds"] > 0.0
    assert "shows little" in report["verdict"]


@pytest.mark.parametrize(("count", "asked"), [(1, "1 question"), (2, "2 questions")])
def test_text_says_it_in_a_table_and_a_verdict(
    store: Path, files: Path, count: int, asked: str
) -> None:
    result = run_command("check", "--store", store, "--questions", count, "--estimate", files)
    assert result.exit_code == 0
    model, first, exact, heads, *rows, disk, estimate, verdict = result.stdout.splitlines()
    assert model == (
        "Model type llama, tested with every release; weights: float32; 768 bytes of KV a token in "
        "3 layers."
    )
    assert first.startswith(f"tiny-llama0: {asked}, over prompts of about ")
    assert exact.startswith("Exact: recomputing everything gives the model's own logits (off by ")
    assert heads.split() == ["ratio", "equal", "answers", "recovered", "same", "token", "speed-up"]
    assert [row.split()[:3] for row in rows] == [
        ["plain", "reuse", "0%"],
        *(["fused", "KV", ratio] for ratio in ("0%", "5%", "15%")),
    ]
    assert "of KV for 9 chunks" in disk
    assert estimate.startswith("To ingest 3 documents, 9 chunks of ")
    assert "shows little" in verdict
    assert "20/20" not in result.stderr
    assert f"{count}/{count}" in result.stderr


def test_exit_status_1_where_it_is_not_exact(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlacedPrompt, "recompute", forgetful(PlacedPrompt.recompute, 2))
    result = run_command("check", "--store", store, "--questions", 1, "--json")
    assert result.exit_code == 1
    assert said(result)["exact"] is False
    told = run_command("check", "--store", store, "--questions", 1)
    assert told.exit_code == 1
    assert "Not exact: recomputing everything doesn't give the model's own" in told.stdout


@pytest.mark.parametrize("kv_format", [None, "int8"])
def test_an_estimate_needs_no_store_and_makes_none(
    model_dir: Path, files: Path, tmp_path: Path, kv_format: str | None
) -> None:
    more = () if kv_format is None else ("--kv-format", kv_format)
    where = ("--store", tmp_path / "store", "--model", model_dir)
    given = ("--estimate", files / "town-0.txt", "--estimate", files / "town-1.txt")
    options = (*where, *given, "--chunk-tokens", 48, *more)
    before = listed(files), listed(model_dir)
    result = run_command("check", *options, "--json")
    assert result.exit_code == 0
    report = said(result)
    assert report["exact"] is report["disk"] is None
    assert (report["rows"], report["questions"]) == ([], 0)
    estimate = report["estimate"]
    assert (estimate["documents"], estimate["chunks"]) == (2, 6)
    assert estimate["kv_format"] == (kv_format or "float32")
    assert "There is no store yet" in run_command("check", *options).stdout
    assert list(tmp_path.iterdir()) == []
    assert (listed(files), listed(model_dir)) == before


def test_no_store_and_nothing_to_estimate(model_dir: Path, tmp_path: Path) -> None:
    result = run_command("check", "--store", tmp_path / "none", "--model", model_dir)
    assert "There is no store at" in error_of(result)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_store(model_dir: Path, files: Path, tmp_path: Path) -> None:
    where = ("--store", tmp_path / "store", "--model", model_dir)
    run_command("index", files / "town-0.txt", *where)
    run_command("delete", "town-0.txt", "--store", tmp_path / "store")
    error = error_of(run_command("check", *where))
    assert "holds no chunks; index documents first" in error


def test_a_store_stays_as_it_is(store: Path) -> None:
    before = listed(store / "kv")
    assert run_command("check", "--store", store, "--questions", 1).exit_code == 0
    assert listed(store / "kv") == before


def test_an_interrupt(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(PlacedPrompt, "recompute", interrupted)
    assert run_command("check", "--store", store).exit_code == 130
