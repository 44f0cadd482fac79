"""`fusionrag bench quality --out` twice: a directory belongs to one run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations.ingest import chunk_prefill as ingest
from fusionrag_integrations.serving.settings import AnswerSettings
from tests.commands import Run, error_of, neighbour_counts, run_command, said, write_rows

pytest.importorskip("rouge_score")


class TestAnotherRunsDirectory:
    """A directory belongs to one run; another one is refused and changes nothing in it."""

    @pytest.fixture(scope="class")
    def made(self, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("made")
        where = ("--model", model_dir, "--dataset", "jsonl", "--data", write_rows(path / "data"))
        few = ("--strategies", "random", "--ratios", "0.15", "--inspect", 0)
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
