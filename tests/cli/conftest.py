"""What tests of `fusionrag bench quality` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench import quality as bench_quality
from fusionrag_integrations.bench.shared_pass import answer_all
from fusionrag_integrations.demo import suites, tasks
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.settings import AnswerSettings
from tests.commands import Run, run_command, write_rows


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


@pytest.fixture
def _small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small world, and short prompts."""
    monkeypatch.setattr(suites, "LEAST_DOCUMENTS", 12)
    monkeypatch.setattr(tasks, "CHUNKS", 8)
