"""The formats of stores beside each other: what must differ, and what must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner

from benchmarks import format_records
from benchmarks.__main__ import main
from benchmarks.format_records import share_in_shape
from benchmarks.formats import check_formats, measure_formats
from benchmarks.results.tables import format_scores_markdown, formats_markdown
from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.suites import Suite, context_question
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.kv.types import KVFormat
from fusionrag_integrations.store.layout import CATALOG_FILE
from tests.conftest import all_records, town

FORMATS = get_args(KVFormat)
RATIOS = (0.0, 0.3, 1.0)
KINDS = ("house", "river", "river")
Asked = list[tuple[str, Prompt, AnswerSettings]]


def questions(engine: FusionEngine) -> list[Question]:
    ids = [record.chunk.id for record in all_records(engine.store.catalog)]
    return [
        context_question(engine, kind, f"Which is number {i}?", ("the river",), ids[i : i + 3], 4)
        for i, kind in enumerate(KINDS)
    ]


SUITE = Suite("towns", "0", (town(0), town(1)), 48, 4, questions)


@pytest.fixture(scope="module")
def model(model_dir: Path) -> CausalModel:
    return CausalModel.load(model_dir)


@pytest.fixture(scope="module")
def measured(
    model: CausalModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Asked, Path]:
    """The result, what each store's engine was asked, and where the stores are."""
    path, asked = tmp_path_factory.mktemp("formats"), Asked()
    answer = FusionEngine.answer

    def watched(engine: FusionEngine, prompt: Prompt, settings: AnswerSettings) -> Answer:
        asked.append((engine.store.path.name, prompt, settings))
        return answer(engine, prompt, settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusionEngine, "answer", watched)
        told: list[str] = []
        result = measure_formats(
            model, SUITE, FORMATS, RATIOS, path, None, lambda stage, *_: told.append(stage)
        )
    assert {"fused", "load", "ask"} <= set(told)
    return result, asked, path


@pytest.fixture(scope="module")
def by_format(measured: tuple[dict[str, Any], Asked, Path]) -> dict[str, dict[str, Any]]:
    return {row["kv_format"]: row for row in measured[0]["formats"]}


@pytest.mark.parametrize("error", ["error", "fused_error"])
def test_fewer_bits_are_further_off(by_format: dict[str, dict[str, Any]], error: str) -> None:
    off = {name: row[error] for name, row in by_format.items()}
    assert off["float32"] == 0.0
    assert 0.0 < off["float16"] < off["bfloat16"] < off["int4"]
    assert off["float16"] < off["int8"] < off["int4"] < 0.1


def test_compact_neighbours_add_to_the_error(by_format: dict[str, dict[str, Any]]) -> None:
    for name in ("int8", "int4"):
        assert by_format[name]["fused_error"] > by_format[name]["error"]


@pytest.mark.parametrize("share", ["bytes_a_token", "of_16_bits", "in_shape"])
def test_fewer_bits_take_fewer_bytes(by_format: dict[str, dict[str, Any]], share: str) -> None:
    took = {name: row[share] for name, row in by_format.items()}
    assert took["float32"] > took["float16"] > took["int8"] > took["int4"]
    assert took["float16"] == pytest.approx(took["bfloat16"], rel=1e-3)  # but for the name's length


def test_bytes_are_those_on_disk(
    measured: tuple[dict[str, Any], Asked, Path], by_format: dict[str, dict[str, Any]]
) -> None:
    for name, row in by_format.items():
        with Catalog.open(measured[2] / name / CATALOG_FILE) as catalog:
            fused = [key for _, _, key in catalog.kv.keys_by_chunk()]
            records = catalog.chunks.records(catalog.chunks.ids()).values()
        assert all(fused)
        tokens = sum(len(record.encoded.token_ids) for record in records)
        files = [measured[2] / name / "kv" / key[:2] / f"{key}.safetensors" for key in fused]
        nbytes = sum(file.stat().st_size for file in files)
        assert row["bytes_a_token"] == pytest.approx(nbytes / tokens)


def test_times_are_of_a_load_and_of_more(by_format: dict[str, dict[str, Any]]) -> None:
    for row in by_format.values():
        assert 0.0 < row["load_ms"] < row["place_ms"]


def test_all_stores_are_asked_the_same(measured: tuple[dict[str, Any], Asked, Path]) -> None:
    prompts = {
        (name, settings.ratio): [p for n, p, s in measured[1] if (n, s) == (name, settings)]
        for name, _, settings in measured[1]
    }
    below = {(name, ratio) for name in FORMATS for ratio in RATIOS if ratio < 1.0}
    assert prompts.keys() == below | {("float32", 1.0)}
    assert all(asked == prompts["float32", 0.0] for asked in prompts.values())
    assert len(prompts["float32", 0.0]) == len(KINDS)
    assert {settings.kv for _, _, settings in measured[1]} == {"fused"}


def test_recomputing_everything_makes_formats_alike(
    model: CausalModel, measured: tuple[dict[str, Any], Asked, Path]
) -> None:
    prompts = {str(prompt): (prompt, s) for _, prompt, s in measured[1] if s.ratio == 1.0}
    for prompt, settings in prompts.values():
        answers = set()
        for name in ("float32", "int4"):
            engine = FusionEngine.open(model, measured[2] / name)
            answers.add(engine.answer(prompt, settings).text)
            engine.store.close()
        assert len(answers) == 1


def test_chunks_are_fused_behind_the_same(
    model: CausalModel, measured: tuple[dict[str, Any], Asked, Path]
) -> None:
    found = []
    for name in FORMATS:
        engine = FusionEngine.open(model, measured[2] / name)
        catalog = engine.store.catalog
        found.append({chunk: catalog.kv.neighbours(chunk) for chunk in catalog.chunks.ids()})
        engine.store.close()
    assert all(neighbours == found[0] for neighbours in found)
    assert any(found[0].values())


def test_a_row_for_each_format_kind_and_ratio(
    measured: tuple[dict[str, Any], Asked, Path],
) -> None:
    rows = measured[0]["rows"]
    assert [(row["kind"], row["ratio"], row["kv_format"]) for row in rows] == [
        (kind, ratio, name) for kind in ("house", "river", "all") for ratio in RATIOS
        for name in FORMATS
    ]  # fmt: skip
    for row in rows:
        assert row["n"] == {"house": 1, "river": 2, "all": 3}[row["kind"]]
        assert 0.0 <= row["em"] <= row["f1"] <= 1.0
        assert row["ci"][0] <= row["difference"] <= row["ci"][1]
        if row["kv_format"] == "float32" or row["ratio"] == 1.0:
            assert (row["difference"], row["ci"]) == (0.0, (0.0, 0.0))


def test_tables(measured: tuple[dict[str, Any], Asked, Path]) -> None:
    result = json.loads(json.dumps(measured[0]))
    first = formats_markdown(result["formats"]).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in first[2:]] == list(FORMATS)
    scores = format_scores_markdown(result["rows"]).splitlines()
    assert scores[0].endswith("| n | F1 / EM, 0% | F1 / EM, 30% | F1 / EM, 100% |")
    assert len(scores) == 2 + 3 * len(FORMATS)


@pytest.mark.parametrize(("kv_format", "share"), [("int8", 0.53), ("int4", 0.30)])
def test_shares_in_the_shape_of_a_7b_model(kv_format: KVFormat, share: float) -> None:
    """The formats' promise; whole files, with headers."""
    assert share_in_shape(kv_format) <= share
    assert share_in_shape("bfloat16") == 1.0
    assert share_in_shape("float16") == pytest.approx(1.0, rel=1e-5)
    assert format_records.SHAPE == "qwen2.5-7b"


def test_float32_is_always_one_of_them() -> None:
    assert check_formats(["int4", "float32", "int4"]) == ["float32", "int4"]


def test_an_unknown_format_is_refused_before_anything_is_made() -> None:
    with pytest.raises(InvalidInputError, match="int2; known are float32, float16"):
        check_formats(["int8", "int2"])
    asked = CliRunner().invoke(main, ["formats", "--formats", "int2"])
    assert asked.exit_code == 1
    assert "Unknown formats int2" in asked.output


def test_the_command(monkeypatch: pytest.MonkeyPatch, model_dir: Path) -> None:
    monkeypatch.setattr("fusionrag_integrations.cli.suites.make_suite", lambda *_: SUITE)
    command = ["formats", "--model", str(model_dir), "--formats", "int8", "--ratios", "0"]
    told = CliRunner().invoke(main, command)
    assert told.exit_code == 0, told.output
    assert "| int8 |" in told.stdout
    assert "| all | int8 | 3 |" in told.stdout
