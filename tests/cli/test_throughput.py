"""`fusionrag bench throughput`, run in this process."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.bench import invented
from fusionrag_integrations.bench.throughput import measure
from fusionrag_integrations.bench.throughput.bound import Bound
from fusionrag_integrations.bench.throughput.load import Outcome
from fusionrag_integrations.bench.throughput.overtaking import ShortBehindLong
from fusionrag_integrations.bench.throughput.rows import Load, Measured, throughput_row
from fusionrag_integrations.bench.throughput.systems import System
from fusionrag_integrations.cli import throughput
from fusionrag_integrations.errors import InvalidInputError
from tests.commands import error_of, run_command, said
from tests.conftest import town

FEW = (
    *("--requests", 2, "--clients", "1", "--ratios", "0.15", "--arrivals", "0.5"),
    *("--prompt-tokens", 700, "--output-tokens", 3, "--chunks", 4),
)


NO_LIMITS = {"fastest_full_attention": "generate", "bounds": [], "short_behind_long": None}


def run(*options: object) -> Result:
    return run_command("bench", "throughput", *FEW, *options)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[FusionEngine, list[str]]]:
    """The engines that were measured, with the texts of their chunks; nothing is measured."""
    seen: list[tuple[FusionEngine, list[str]]] = []

    def watched(engine: FusionEngine, *given: Any) -> dict[str, Any]:
        chunks = engine.store.catalog.chunks
        seen.append((engine, [r.chunk.text for r in chunks.records(chunks.ids()).values()]))
        return {"rows": [], **NO_LIMITS}

    monkeypatch.setattr(measure, "measure_throughput", watched)
    return seen


def test_over_a_store_as_json(model_dir: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48) as engine:
        engine.ingest([town(1), town(2)])
    result = said(run("--store", store, "--json"))
    assert (result["model"], result["settings"]["chunks"]) == (model_dir.name, 4)
    assert [(row["system"], row["clients"], row["share"]) for row in result["rows"]] == [
        ("fusionrag", 1, None),
        ("fusionrag_serial", 1, None),
        *[("full_attention", 1, None)] * 4,
        ("fusionrag", None, 0.5),
        ("fusionrag_serial", None, 0.5),
        ("full_attention", None, 0.5),
    ]
    assert {row["errors"] for row in result["rows"]} == {0}
    assert [(bound["ratio"], bound["clients"]) for bound in result["bounds"]] == [(0.15, 1)]
    assert result["short_behind_long"]["long_tokens"] > 300


def test_as_a_table_with_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = throughput_row(
        System("fusionrag", "together", 0.15, nullcontext),  # type: ignore[arg-type]
        Load(1),
        None,
        3,
        [Measured(Outcome((), ("RuntimeError: no [engine] today",)), None, None)],
    )
    told = {"rows": [asdict(failed)], **NO_LIMITS}
    monkeypatch.setattr(measure, "measure_throughput", lambda *given: told)
    result = run("--model", "demo")
    assert result.exit_code == 0, result.stderr
    assert len([line for line in result.stdout.splitlines() if line.startswith("|")]) == 2 + 1
    assert "The fastest way to full attention: generate." in result.stdout
    assert "fusionrag, together: RuntimeError: no [engine] today" in result.stdout


def test_what_is_measured_is_kept(model_dir: Path, tmp_path: Path) -> None:
    kept = tmp_path / "runs" / "load"
    options = ("--model", model_dir, "--out", kept, "--prompt-tokens", 1000)
    first = said(run(*options, "--json"))
    assert {path.name for path in kept.iterdir()} == {"store", "log.jsonl", "run.json", "table.md"}
    log = (kept / "log.jsonl").read_text()
    assert json.loads((kept / "run.json").read_text()) == first
    table = (kept / "table.md").read_text()
    assert table.count("\n|") == 2 + len(first["rows"]) - 1
    assert "allow" in table
    shown = run(*options)
    assert shown.stdout == table
    assert (kept / "log.jsonl").read_text() == log
    assert "is of another run" in error_of(run(*options, "--seed", 3))


def test_without_a_terminal_progress_is_told_in_lines(
    asked: list[tuple[FusionEngine, list[str]]], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stages() -> list[str]:
        lines = run("--model", model_dir).stderr.splitlines()
        return [line for line in lines if line.split("/")[0].count(" ") == 1]

    assert stages() == ["catalog 4/4", "embed 0/0", "isolated 4/4", "fused 4/4"]
    monkeypatch.setattr("fusionrag_integrations.cli.console.SECONDS_BETWEEN_LINES", 0.0)
    assert {"catalog 1/1", "catalog 2/2", "fused 4/4"} <= set(stages())


def test_limits_stand_below_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = [Bound(0.0, 8, 110.4, 32.06, 4.25, 0.9), Bound(0.15, 8, 500.0, 32.0, 1.5, 1.02)]
    behind = ShortBehindLong(0.15, 104, 7950, 40.2, 250.0, (120.0, 310.4, 200.0), 0.94)
    told = {"rows": [], "fastest_full_attention": "generate", "bounds": list(map(asdict, bounds))}
    lines = {
        behind: "A prompt of 104 tokens has its first token after 40 ms alone, and 120 to 310 ms "
        "behind one of 7,950 at 15%, whose longest pass takes 250 ms: at most 94% of a pass and "
        "two times the time alone.",
        replace(behind, behind_ms=(), of_limit=None): "The long prompt was computed before a short "
        "one could arrive.",
        None: "",
    }
    for short, line in lines.items():
        result = told | {"short_behind_long": short and asdict(short)}
        monkeypatch.setattr(measure, "measure_throughput", lambda *given, told=result: told)
        said_below = " ".join(run("--model", "demo").stdout.split("generate.")[1].split())
        assert said_below == (
            "At 0%, 110 ms of prefill and decode steps of 32.1 ms for 8 allow 4.25 requests/s; 90% "
            "of that was reached. At 15%, 500 ms of prefill and decode steps of 32.0 ms for 8 "
            f"allow 1.5 requests/s; 102% of that was reached. {line}".strip()
        )


def test_the_texts_are_of_the_model(
    asked: list[tuple[FusionEngine, list[str]]], model_dir: Path
) -> None:
    run("--model", model_dir)
    run("--model", "demo")
    wikipedia, demo = (texts for _, texts in asked)
    assert len(wikipedia) >= 4
    assert not set(wikipedia) & set(demo)
    with pytest.raises(Exception, match="closed"):
        asked[0][0].answer("Is it closed?")


def test_random_weights_are_asked_about_invented_texts(
    asked: list[tuple[FusionEngine, list[str]]], monkeypatch: pytest.MonkeyPatch, model_dir: Path
) -> None:
    from fusionrag_integrations.execution.hf.model import CausalModel

    loaded = CausalModel.load(model_dir)
    monkeypatch.setattr(throughput, "load_model", lambda *given: loaded)
    run("--config", "llama-3.1-8b")
    ((_, texts),) = asked
    assert set(invented.texts(4)) == set(texts)


@pytest.mark.parametrize("installed", [True, False])
def test_the_pretrained_model_is_asked_where_it_is_installed(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> Path:
        if installed:
            return Path("model.gguf")
        raise InvalidInputError("It isn't installed.")

    def refused(shape: str | None, model: str | None, *given: str) -> Any:
        raise InvalidInputError(f"asked for {model}")

    monkeypatch.setattr(throughput, "smollm2", found)
    monkeypatch.setattr("fusionrag_integrations.execution.hf.gguf.require_gguf_extra", lambda: None)
    monkeypatch.setattr(throughput, "load_model", refused)
    assert f"asked for {'smollm2' if installed else 'demo'}" in error_of(run())


def test_an_interruption_is_one_line_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stores: list[Path] = []

    def interrupted(engine: FusionEngine, *given: Any) -> Any:
        stores.append(engine.store.path)
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure_throughput", interrupted)
    result = run("--model", "demo")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "Interrupted" in result.stderr
    assert [store.exists() for store in stores] == [False]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--config", "gpt"), "'gpt'; known are qwen2.5-0.5b"),
        (("--config", "demo", "--model", "x"), "--config or --model, not both"),
        (("--config", "demo", "--store", "x"), "--config or --store, not both"),
        (("--store", "nowhere"), "nowhere"),
        (("--clients", "0"), "'--clients': 0 is not in the range 1<=x<="),
        (("--clients", ""), "'--clients': '' is not a valid integer range"),
        (("--arrivals", "0"), "give shares above 0"),
        (("--zipf", "-1"), "'--zipf': -1.0 is not in the range"),
        (("--model", "demo", "--prompt-tokens", "10000"), "too long"),
    ],
)
def test_errors_name_what_was_given(options: tuple[str, ...], what: str) -> None:
    assert what in error_of(run(*options))
