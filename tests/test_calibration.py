"""The calibration file: what it keeps, what it refuses, and which one an engine takes."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.prompt import ingest_surroundings
from fusionrag_integrations.store.calibration import (
    FORMAT,
    Calibration,
    read_break_even,
    read_calibration,
    write_calibration,
)
from fusionrag_integrations.store.layout import CALIBRATION_FILE

ONE = Calibration(layers=(1, 4), whole_sentences=True, sensitivity=0.5)
OTHER = Calibration(layers=(2,))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / CALIBRATION_FILE


class TestFile:
    @pytest.mark.parametrize("calibration", [ONE, OTHER])
    def test_round_trip(self, file: Path, calibration: Calibration) -> None:
        write_calibration(file, "a1", calibration, {"questions": 3})
        assert read_calibration(file, "a1") == calibration

    def test_the_layout_is_the_documented_one(self, file: Path) -> None:
        write_calibration(file, "a1", ONE, {"questions": 3, "trials": [{"layers": [1]}]})
        assert json.loads(file.read_text()) == {
            "format": 1,
            "calibrations": {
                "a1": {
                    "layers": [1, 4],
                    "whole_sentences": True,
                    "sensitivity": 0.5,
                    "measured": {"questions": 3, "trials": [{"layers": [1]}]},
                }
            },
        }

    def test_break_even_lengths_stay_for_other_devices(self, file: Path) -> None:
        assert read_break_even(file, "a1", "cpu") == 0
        write_calibration(file, "a1", ONE, {}, {"cpu": 300})
        write_calibration(file, "a1", OTHER, {}, {"H200": 700})
        write_calibration(file, "b2", OTHER, {})
        assert [read_break_even(file, "a1", name) for name in ("cpu", "H200", "L4")] == [
            300,
            700,
            0,
        ]
        assert read_break_even(file, "b2", "cpu") == 0
        assert read_calibration(file, "a1") == OTHER
        write_calibration(file, "a1", ONE, {}, {"cpu": 200})
        assert read_break_even(file, "a1", "cpu") == 200

    @pytest.mark.parametrize("lengths", [{"cpu": -1}, {"cpu": "many"}, [300], "300"])
    def test_a_length_that_cannot_be_is_named(self, file: Path, lengths: object) -> None:
        write_calibration(file, "a1", ONE, {})
        content = json.loads(file.read_text())
        content["calibrations"]["a1"]["break_even"] = lengths
        file.write_text(json.dumps(content))
        with pytest.raises(InvalidInputError, match=r"calibration\.json is damaged"):
            read_break_even(file, "a1", "cpu")

    def test_no_file_and_another_signature_hold_none(self, file: Path) -> None:
        assert read_calibration(file, "a1") is None
        write_calibration(file, "a1", ONE, {})
        assert read_calibration(file, "a10") is None

    def test_others_are_kept_and_the_own_one_is_replaced(self, file: Path) -> None:
        write_calibration(file, "a1", ONE, {"by": "one"})
        write_calibration(file, "b2", OTHER, {})
        write_calibration(file, "b2", ONE, {})
        assert read_calibration(file, "a1") == read_calibration(file, "b2") == ONE
        write_calibration(file, "a1", OTHER, {})
        assert [read_calibration(file, s) for s in ("a1", "b2")] == [OTHER, ONE]

    @pytest.mark.parametrize("method", ["write", "fsync"])
    def test_a_failing_write_leaves_the_old(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        write_calibration(file, "a1", ONE, {})
        before = file.read_bytes()

        def fail(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(f"fusionrag_integrations.support.atomic_files.os.{method}", fail)
        with pytest.raises(InvalidInputError, match="No space left"):
            write_calibration(file, "a1", OTHER, {})
        monkeypatch.undo()
        assert file.read_bytes() == before
        write_calibration(file, "b2", OTHER, {})  # and what was left over is in nobody's way
        assert read_calibration(file, "a1") == ONE
        assert [path.name for path in file.parent.iterdir()] == [CALIBRATION_FILE]

    def test_what_json_cannot_hold_leaves_the_old(self, file: Path) -> None:
        write_calibration(file, "a1", ONE, {})
        with pytest.raises(TypeError):
            write_calibration(file, "a1", OTHER, {"trials": object()})
        assert read_calibration(file, "a1") == ONE


ENTRY: dict[str, Any] = {"layers": [1], "whole_sentences": False, "sensitivity": 0.0}
FOREIGN = {
    "empty": "",
    "cut": '{"format": 1, "calibrations": {"a1": {"lay',
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "something else": '{"layers": [1]}',
    "without entries": '{"format": 1}',
}
NEWER = {
    "newer": '{"format": 2, "calibrations": {}}',
    "by name": '{"format": "1", "calibrations": {}}',
    "listed": '{"format": 1, "calibrations": []}',
}
DAMAGED = {
    "no layers": {n: v for n, v in ENTRY.items() if n != "layers"},
    "no layer": ENTRY | {"layers": []},
    "descending": ENTRY | {"layers": [3, 1]},
    "a word": ENTRY | {"layers": ["first"]},
    "one number": ENTRY | {"layers": 3},
    "negative sensitivity": ENTRY | {"sensitivity": -1.0},
    "no number": ENTRY | {"sensitivity": None},
    "no object": [1],
    "nothing": 3,
}


class TestRefusals:
    def refuse(self, file: Path, *words: str) -> None:
        with pytest.raises(InvalidInputError) as refused:
            read_calibration(file, "a1")
        assert all(word in str(refused.value) for word in (str(file), *words, "alibrate again"))

    @pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
    def test_what_is_no_calibration_is_named(self, file: Path, text: str) -> None:
        file.write_text(text)
        self.refuse(file, "no calibration")
        with pytest.raises(InvalidInputError, match="no calibration"):
            write_calibration(file, "b2", ONE, {})  # nobody's file is overwritten
        assert file.read_text() == text

    def test_bytes_that_are_no_text(self, file: Path) -> None:
        file.write_bytes(b"\xff\xfe\x00")
        self.refuse(file, "no calibration")

    @pytest.mark.parametrize("text", NEWER.values(), ids=NEWER)
    def test_another_format_is_named(self, file: Path, text: str) -> None:
        file.write_text(text)
        self.refuse(file, f"format {json.loads(text)['format']!r}", f"reads format {FORMAT}")

    @pytest.mark.parametrize("entry", DAMAGED.values(), ids=DAMAGED)
    def test_a_damaged_entry_is_named(self, file: Path, entry: Any) -> None:
        content = {"format": FORMAT, "calibrations": {"a1": entry, "b2": ENTRY}}
        file.write_text(json.dumps(content))
        self.refuse(file, "damaged")
        assert read_calibration(file, "b2") == Calibration(layers=(1,))  # others don't suffer

    @pytest.mark.parametrize(
        "change", [{"layers": "12"}, {"whole_sentences": "false"}, {"layers": [1.9]}], ids=str
    )
    def test_values_of_another_type_are_not_made_to_fit(self, file: Path, change: Any) -> None:
        content = {"format": FORMAT, "calibrations": {"a1": ENTRY | change}}
        file.write_text(json.dumps(content))
        self.refuse(file, "damaged")


@pytest.fixture(scope="module")
def model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    """A model in a directory of this module's own."""
    return CausalModel.load(shutil.copytree(model_dir, tmp_path_factory.mktemp("own") / "tiny"))


@pytest.fixture
def beside(model: CausalModel) -> Any:
    """The file beside the model's weights, gone when the test ends."""
    path = Path(model.source) / CALIBRATION_FILE
    yield path
    path.unlink(missing_ok=True)


class TestEngine:
    def opened(self, model: CausalModel, store: Path) -> FusionEngine:
        return FusionEngine.open(model, store)

    def signature(self, model: CausalModel) -> str:
        return model.signature(ingest_surroundings(model.tokenizer))

    def test_there_is_none(self, model: CausalModel, tmp_path: Path) -> None:
        assert self.opened(model, tmp_path).calibration is None

    def test_the_stores_comes_first_then_the_models(
        self, model: CausalModel, beside: Path, file: Path, tmp_path: Path
    ) -> None:
        in_model, in_store = Calibration(layers=(0, 2), sensitivity=1.0), Calibration(layers=(1,))
        write_calibration(beside, self.signature(model), in_model, {})
        assert self.opened(model, tmp_path).calibration == in_model
        write_calibration(file, self.signature(model), in_store, {})
        assert self.opened(model, tmp_path).calibration == in_store
        file.unlink()
        assert self.opened(model, tmp_path).calibration == in_model

    def test_one_for_another_model_is_passed_over(
        self, model: CausalModel, beside: Path, file: Path, tmp_path: Path
    ) -> None:
        write_calibration(file, "another", Calibration(layers=(99,)), {})
        assert self.opened(model, tmp_path).calibration is None
        write_calibration(beside, self.signature(model), OTHER, {})
        assert self.opened(model, tmp_path).calibration == OTHER

    def test_it_counts_from_the_next_opening_on(
        self, model: CausalModel, file: Path, tmp_path: Path
    ) -> None:
        engine = self.opened(model, tmp_path)
        write_calibration(file, self.signature(model), OTHER, {})
        assert engine.calibration is None
        assert self.opened(model, tmp_path).calibration == OTHER

    @pytest.mark.parametrize("layers", [(3,), (0, 7)])
    def test_layers_that_the_model_lacks_are_named(
        self, model: CausalModel, file: Path, tmp_path: Path, layers: tuple[int, ...]
    ) -> None:
        write_calibration(file, self.signature(model), Calibration(layers=layers), {})
        with pytest.raises(InvalidInputError) as refused:
            self.opened(model, tmp_path)
        said = str(refused.value)
        assert f"names layer {layers[-1]}" in said
        assert "layers 0 to 2" in said
        assert str(file) in said

    def test_negative_layers_are_refused(
        self, model: CausalModel, file: Path, tmp_path: Path
    ) -> None:
        content = {"calibrations": {self.signature(model): ENTRY | {"layers": [-1]}}}
        file.write_text(json.dumps({"format": FORMAT} | content))
        with pytest.raises(InvalidInputError):
            self.opened(model, tmp_path)

    def test_a_damaged_file_is_named(self, model: CausalModel, file: Path, tmp_path: Path) -> None:
        file.write_text("{")
        with pytest.raises(InvalidInputError, match=CALIBRATION_FILE):
            self.opened(model, tmp_path)
