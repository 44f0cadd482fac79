"""Commands that make the tables and figures of the docs from results."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.results.figures import draw_all
from benchmarks.results.report import draw_figures, fill
from benchmarks.results.run import add_leads, read_run
from fusionrag_integrations.cli.console import FilePath
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.atomic_files import check_output, write_output

run_argument = click.argument("run", type=FilePath(exists=True, file_okay=False))


@click.command()
@run_argument
def leads(run: Path) -> None:
    """Add to the run.json of RUN how far our selector is ahead of others, from the log beside it.

    RUN is a directory that `fusionrag bench quality --out` made.
    """
    add_leads(run)


@click.command()
@run_argument
def figures(run: Path) -> None:
    """Draw what the run.json of RUN holds, beside it."""
    draw_all(run, read_run(run)["rows"])


@click.command()
@click.argument("document", type=FilePath(exists=True, dir_okay=False))
@click.option(
    "--results",
    type=FilePath(exists=True, file_okay=False),
    required=True,
    help="The directory of the runs' results, NAME.json each.",
)
def report(document: Path, results: Path) -> None:
    """Fill the tables of a Markdown DOCUMENT from results and draw its figures beside it.

    \b
    python -m benchmarks report docs/quality.md --results docs/results/quality
    """
    check_output(document)
    filled = fill(_text(document), results)
    draw_figures(filled, results, document.parent)
    write_output(document, filled.encode())


def _text(document: Path) -> str:
    try:
        return document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{document} can't be read: {error}.") from error
