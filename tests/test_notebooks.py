"""The tutorial notebooks run offline, and show what their committed outputs show.

Each cell's outputs must be of the committed kinds. What they say must be the same as well, but for
pictures, and for cells with the tag `varies`, which hold times, paths or what rounding decides.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from nbformat import NotebookNode

from tests.notebooks import METADATA, read_notebook, run_notebook

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MOST_BYTES = 400_000
ABSOLUTE = re.compile(r"(?<![\w.<])/(bin|dev|home|mnt|opt|private|root|tmp|usr|Users|var|work)/")

PRETRAINED = {"langchain_quickstart", "llama_index_quickstart"}  # ask SmolLM2

of_each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
run_each = pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, marks=[pytest.mark.smollm2] if path.stem in PRETRAINED else [], id=path.stem
        )
        for path in NOTEBOOKS
    ],
)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> list[tuple[str, ...]]:
    """What a cell's outputs are: a stream, or data in which forms."""
    return [(o.output_type, o.get("name", ""), *sorted(o.get("data", ()))) for o in cell.outputs]


def said(cell: NotebookNode) -> list[str]:
    """The text of a cell's outputs, in all its forms."""
    texts = []
    for output in cell.outputs:
        data = output.get("data", {})
        texts += [output.get("text", ""), *(data[k] for k in sorted(data) if k.startswith("text/"))]
    return texts


def test_there_are_six() -> None:
    assert len(NOTEBOOKS) == 6


@pytest.mark.slow
@run_each
def test_a_fresh_kernel_shows_what_is_committed(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if path.stem in PRETRAINED:
        request.getfixturevalue("smollm2_file")
    committed = read_notebook(path)
    run = run_notebook(committed, tmp_path)
    for cell, again in zip(code_cells(committed), code_cells(run), strict=True):
        assert kinds(again) == kinds(cell), cell.id
        if "varies" not in cell.metadata.get("tags", ()):
            assert said(again) == said(cell), cell.id
        assert not any(str(tmp_path) in text for text in said(again)), cell.id
    assert not list(tmp_path.iterdir())  # stores go away with the kernel


@of_each
def test_the_first_cells_name_the_line_to_change(path: Path) -> None:
    first, setup = read_notebook(path).cells[:2]
    line = "MODEL = smollm2()" if path.stem in PRETRAINED else "MODEL = MODEL_DIR"
    assert first.cell_type == "markdown"
    assert f"change one line of the next cell, `{line}`" in first.source
    assert line in [code.split("  #")[0] for code in setup.source.splitlines()]
    assert re.search(r"\b(from_pretrained|load)\(\s*MODEL\b", setup.source)


@of_each
def test_what_is_committed_is_clean(path: Path) -> None:
    notebook = read_notebook(path)
    assert path.stat().st_size < MOST_BYTES
    assert notebook.metadata == METADATA  # no widgets, no machine's versions
    assert not ABSOLUTE.search(path.read_text())
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags"}
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        names = {output.get("name") or output.output_type for output in cell.outputs}
        assert not names & {"stderr", "error"}, cell.id  # no warnings, no progress


@of_each
def test_links_lead_somewhere(path: Path) -> None:
    for cell in read_notebook(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#:]+)", cell.source):
                assert (path.parent / target).exists(), f"{cell.id}: {target}"


def test_outputs_that_differ_are_told_apart() -> None:
    def cell(**output: object) -> NotebookNode:
        made = {"cell_type": "code", "outputs": [output]}
        return NotebookNode(json.loads(json.dumps(made), object_hook=NotebookNode))

    printed = cell(output_type="stream", name="stdout", text="1\n")
    warned = cell(output_type="stream", name="stderr", text="1\n")
    drawn = cell(output_type="display_data", data={"image/png": "aa", "text/plain": "<Figure>"})
    redrawn = cell(output_type="display_data", data={"image/png": "bb", "text/plain": "<Figure>"})
    bare = cell(output_type="display_data", data={"text/plain": "<Figure>"})
    assert kinds(printed) != kinds(warned)
    assert said(printed) == said(warned)
    assert kinds(drawn) == kinds(redrawn) != kinds(bare)
    assert said(drawn) == said(redrawn)
