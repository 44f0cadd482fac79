"""README's and the docs' code samples run as they stand, in order, from the project's folder."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fusionrag_integrations.bench.comparison import Row
from fusionrag_integrations.bench.tables import row_cells
from fusionrag_integrations.cli import main
from fusionrag_integrations.demo.real_text import CANDIDATES

pytestmark = pytest.mark.usefixtures("beginnings_are_known")

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("python", "console")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Set-ups before and after are run side by side by test_set_ups.py.
SET_UPS = re.compile(r"^## Your .*? today.*?(?=^## )", re.MULTILINE | re.DOTALL)
# What asks a server is run by tests/remote/test_examples.py, which has one.
SERVED = re.compile(r"^## One model for many workers$.*?(?=^## )", re.MULTILINE | re.DOTALL)
# Commands that set up or run the project itself are run by whoever runs this test.
SET_UP = (
    "make ",
    "git ",
    "cd ",
    "pip ",
    ".venv/bin/pip ",
    "python -m venv ",
    ". ",
    "python examples/",
)
# What a page says that its code prints, word by word.
PRINTS = re.compile(r"\bprints `([^`]+)`")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each code block."""
    return BLOCK.findall(SERVED.sub("", SET_UPS.sub("", page.read_text())))


def pages_that_run() -> Iterator[Any]:
    """Those with blocks that can run; marked where these ask SmolLM2."""
    for page in PAGES:
        code = [text for language, text in blocks(page) if language in RUN]
        marks = [pytest.mark.smollm2] if any("smollm2" in text for text in code) else []
        if code:
            yield pytest.param(page, marks=marks, id=str(page.relative_to(ROOT).with_suffix("")))


@pytest.mark.parametrize("page", pages_that_run())
def test_code_samples_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if request.node.get_closest_marker("smollm2"):
        request.getfixturevalue("smollm2_loaded")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    namespace: dict[str, Any] = {}
    printed = ""
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), namespace)
        elif language == "console":
            printed += run_commands(text)
    printed += capsys.readouterr().out
    assert [said for said in PRINTS.findall(page.read_text()) if said not in printed] == []


def run_commands(text: str) -> str:
    """What the commands print."""
    printed = ""
    for line in text.splitlines():
        if line.startswith(SET_UP):
            continue
        program, *arguments = shlex.split(line, comments=True)
        assert Path(program).name == "fusionrag", line
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"
        printed += result.output
    return printed


def test_readme_shows_both_frameworks_and_the_command() -> None:
    languages = [language for language, _ in blocks(ROOT / "README.md")]
    assert languages.count("python") >= 3
    assert languages.count("console") >= 2


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_make_knows_what_pages_ask_of_it() -> None:
    known = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = {
        target
        for page in PAGES
        for language, text in blocks(page)
        if language in ("bash", "console")
        for target in re.findall(r"^make (\w+)", text, re.MULTILINE)
    }
    assert {"demo", "test"} <= asked
    assert asked <= set(known)


@pytest.mark.parametrize(
    "command",
    [
        "index",
        "delete",
        "ask",
        "serve",
        "check",
        "demo",
        "inspect",
        "verify",
        "calibrate",
        "bench quality",
        "bench ttft",
        "bench throughput",
        "reindex",
        "collect",
    ],
)
def test_readme_mentions_every_command(command: str) -> None:
    assert f"fusionrag {command}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_number_is_on_file(page: str) -> None:
    results = json.loads((ROOT / "docs" / "benchmarks" / "h100" / "ttft-host.json").read_text())
    longest = [row for row in results["rows"] if row["context"] > 27_000]
    seconds = {(row["strategy"], row["ratio"]): row["ttft_ms"] / 1000 for row in longest}
    ours, full = seconds["fusionrag", 0.15], seconds["full_attention", 1.0]
    assert f"{ours:.2f} s in the place of {full:.2f} s" in " ".join(
        (ROOT / page).read_text().split()
    )


def test_readme_counts_the_demos_answers_as_on_file() -> None:
    results = json.loads((ROOT / "docs" / "results" / "demo.json").read_text())
    right = {
        row["strategy"]: round(row["em"] * row["n"])
        for row in results["rows"]
        if row["kind"] == "back_reference"
    }
    said = (
        f"answers {right['full_attention']} under full attention, {right['full_reuse']} where "
        f"chunks that never saw each other are put together, and {right['fusionrag']} with "
        "FusionRAG at 15%"
    )
    assert said in " ".join((ROOT / "README.md").read_text().split())


def test_the_table_of_the_demo_on_real_text_holds_the_results_on_file() -> None:
    results = json.loads((ROOT / "docs" / "results" / "demo-smollm2.json").read_text())
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    mark = "demo-smollm2-table"
    table = text[text.index(f"<!-- {mark} -->") : text.index(f"<!-- /{mark} -->")]
    shown = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert shown == [f"| {' | '.join(row_cells(Row(**row)))} |" for row in results["rows"]]
    assert results["date"] in table
    asked = f"{results['rows'][0]['n']} questions"
    assert f"{asked} under three strategies" in text
    assert f"{asked} over paragraphs of Wikipedia" in (ROOT / "README.md").read_text()
    assert f"**chosen among {CANDIDATES} because SmolLM2 answers them" in text


def test_the_demo_table_holds_the_results_on_file() -> None:
    results = json.loads((ROOT / "docs" / "results" / "demo.json").read_text())
    text = (ROOT / "docs" / "benchmarks.md").read_text()
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
