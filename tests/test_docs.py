"""README's and the docs' code samples run as they stand, in order, from the project's folder."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fusionrag_integrations.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Set-ups before and after are run side by side by test_set_ups.py.
SET_UPS = re.compile(r"^## Your .*? today.*?(?=^## )", re.MULTILINE | re.DOTALL)
# Commands that set up or run the project itself are run by whoever runs this test.
SET_UP = ("make ", "git ", "cd ", "pip ", "python -m venv ", ". ", "python examples/")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each code block."""
    return BLOCK.findall(SET_UPS.sub("", page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_samples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    namespace: dict[str, Any] = {}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), namespace)
        elif language == "console":
            run_commands(text)


def run_commands(text: str) -> None:
    for line in text.splitlines():
        if line.startswith(SET_UP):
            continue
        program, *arguments = shlex.split(line, comments=True)
        assert program == "fusionrag", line
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"


def test_readme_shows_both_frameworks_and_the_command() -> None:
    languages = [language for language, _ in blocks(ROOT / "README.md")]
    assert languages.count("python") >= 3
    assert languages.count("console") >= 2


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    "command",
    [
        "index",
        "delete",
        "ask",
        "demo",
        "inspect",
        "verify",
        "calibrate",
        "bench quality",
        "bench ttft",
    ],
)
def test_readme_mentions_every_command(command: str) -> None:
    assert f"fusionrag {command}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_the_demo_table_holds_the_results_on_file(page: str) -> None:
    results = json.loads((ROOT / "docs" / "results" / "demo.json").read_text())
    text = (ROOT / page).read_text()
    table = text[text.index("<!-- demo-table -->") : text.index("<!-- /demo-table -->")]
    shown = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert shown == [
        f"| {row['kind']} | {row['strategy']} | {row['em']:.2f} | {row['f1']:.2f} | "
        f"{row['recompute_ratio']:.0%} | {row['ttft_ms']:.0f} ms | {row['speedup']:.1f}x |"
        for row in results["rows"]
    ]
    assert results["date"] in table


def test_the_prefix_table_holds_the_results_on_file() -> None:
    results = json.loads((ROOT / "docs" / "results" / "prefixes.json").read_text())
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    table = text[text.index("<!-- prefix-table -->") : text.index("<!-- /prefix-table -->")]
    shown = [line for line in table.splitlines() if line.startswith("|")][2:]
    routes = list(dict.fromkeys(row["route"] for row in results["rows"]))
    expected = []
    for route in routes:
        of = {row["strategy"]: row for row in results["rows"] if row["route"] == route}
        scores = [row["f1"] for row in of.values()] + list(of["fusionrag_15"]["by_kind"].values())
        expected.append(f"| {route} | " + " | ".join(f"{score:.3f}" for score in scores) + " |")
    assert shown == expected
