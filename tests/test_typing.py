"""A user's project, which mypy checks strictly, sees the package's types through py.typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest

import fusionrag_integrations

PROJECT = Path(__file__).parent / "typed_project"
ROOT = Path(fusionrag_integrations.__file__).parent.parent
TOLD = re.compile(r"(?P<file>[\w.]+):(?P<line>\d+): (?P<kind>error|note): (?P<text>.*)")
REVEALED = re.compile(r'Revealed type is "(.*)"')
CODE = re.compile(r"\[([\w-]+)\]$")

Said = dict[int, str]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Said]:
    """By file and line, the types that mypy reveals and the kinds of errors that it tells."""
    project = tmp_path_factory.mktemp("users") / PROJECT.name  # where no directory is a package
    copytree(PROJECT, project)
    process = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "."),
            # Kept, since without it the frameworks are read anew each time.
            *("--cache-dir", str(ROOT / ".mypy_cache" / PROJECT.name)),
        ],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # so the package is one that is installed
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1, process.stdout + process.stderr
    found: dict[str, Said] = {file.name: {} for file in PROJECT.glob("*.py")}
    for told in TOLD.finditer(process.stdout):
        match = (CODE if told["kind"] == "error" else REVEALED).search(told["text"])
        if match:  # else it explains an error
            found[told["file"]][int(told["line"])] = match[1]
    return found


def expected(name: str) -> Said:
    """What the file says of itself in the comments behind its lines."""
    lines = enumerate((PROJECT / name).read_text().splitlines(), start=1)
    return {number: line.split("  # ")[1] for number, line in lines if "  # " in line}


@pytest.mark.parametrize("name", ["with_engine.py", "with_langchain.py", "with_llama_index.py"])
def test_programs_as_users_write_them_have_no_errors(said: dict[str, Said], name: str) -> None:
    assert said[name] == {}


def test_results_have_the_types_that_they_should(said: dict[str, Said]) -> None:
    names = {line: re.sub(r"(\w+\.)+", "", told) for line, told in said["revealed.py"].items()}
    assert names == expected("revealed.py")
    assert len(names) > 20


def test_mistakes_are_found(said: dict[str, Said]) -> None:
    assert said["wrong.py"] == expected("wrong.py")
    assert len(said["wrong.py"]) > 10
