"""Commands over stores at URLs, and over directories whose store was made anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import run_command
from tests.conftest import town

Told = Callable[..., Any]


@pytest.fixture(autouse=True)
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two towns, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSIONRAG_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "docs"
    directory.mkdir()
    for number in (0, 1):
        (directory / f"town-{number}.txt").write_text(town(number).text)
    return directory


@pytest.fixture(params=["url", "directory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/shared" if request.param == "url" else "my-store"


@pytest.fixture
def told(place: str) -> Told:
    """What a command over the store says with --json."""

    def run(command: str, *arguments: object, fails: bool = False) -> Any:
        result = run_command(command, *arguments, "--store", place, "--json")
        assert result.exit_code == int(fails), result.output
        return json.loads(result.stdout)

    return run


def test_from_documents_to_another_format(told: Told, model_dir: Path, place: str) -> None:
    made = told("index", "docs", "--model", model_dir, "--chunk-tokens", 48)
    assert (made["documents_new"], made["isolated_computed"]) == (2, 6)
    facts = told("inspect")
    assert (facts["documents"], facts["missing_records"]) == (2, 0)
    assert told("ask", "Where is the fox of town 1?", "--max-tokens", 4)["answer"]
    assert told("verify") == {"records": 12, "problems": []}

    anew = told("reindex", "--model", model_dir, "--kv-format", "int8")
    assert anew["isolated_computed"] == 6
    after = told("inspect")
    assert (after["kv_format"], after["missing_records"]) == ("int8", 0)
    assert told("ask", "Where is the fox of town 1?", "--max-tokens", 4)["answer"]
    assert told("index", "docs")["documents_unchanged"] == 2

    kept = told("collect", "--grace", 0)
    assert kept["kv_records"] == 12 if place.startswith("file:") else kept["deleted"]
    assert told("delete", "town-0.txt") == {"deleted": 1, "unknown": []}
    assert told("inspect")["documents"] == 1
    assert told("verify")["problems"] == []
    if place.startswith("file:"):
        assert after["version"] < told("inspect")["version"]


def test_damage_is_found_and_repaired(
    told: Told, model_dir: Path, tmp_path: Path, place: str
) -> None:
    told("index", "docs", "--model", model_dir, "--chunk-tokens", 48)
    root = tmp_path / ("shared" if place.startswith("file:") else place)
    record = sorted((root / "kv").glob("??/*"))[0]
    record.write_bytes(record.read_bytes()[:-8])
    (found,) = told("verify", fails=True)["problems"]
    assert (found["area"], found["error"], found["fixed"]) == ("kv", "KVCorruptError", False)
    (fixed,) = told("repair")["problems"]
    assert fixed["fixed"]
    assert told("verify", fails=True)["problems"][0]["error"] == "KVMissingError"
    told("index", "docs")
    assert told("verify")["problems"] == []


def test_a_store_that_is_not_there(place: str) -> None:
    for command in ("inspect", "verify", "repair", "ask"):
        asked = ("?",) if command == "ask" else ()
        result = run_command(command, *asked, "--store", place)
        assert result.exit_code == 1
        assert "StoreNotFoundError: There is no store at" in result.output
