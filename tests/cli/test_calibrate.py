"""`fusionrag calibrate`, run in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench import break_even, calibrate
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.store.calibration import Calibration, read_break_even
from fusionrag_integrations.store.layout import CALIBRATION_FILE
from tests.commands import error_of, run_command, said


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
        assert content["calibrations"] == {engine.store.catalog.info.signature: result}

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
        ).store.catalog.info.signature
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
