"""The command that compares the formats KV may be kept in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.formats import check_formats, measure_formats
from benchmarks.results.tables import format_scores_markdown, formats_markdown
from fusionrag_integrations.bench.suites import Suite
from fusionrag_integrations.cli.console import bars, json_option, out, print_json
from fusionrag_integrations.cli.models import find_model
from fusionrag_integrations.cli.numbers import ratios_option
from fusionrag_integrations.cli.suites import asks
from fusionrag_integrations.documents.named import imported
from fusionrag_integrations.execution.hf.model import CausalModel


@click.command()
@asks(seed=0)
@click.option(
    "--formats",
    "listed",
    default="float32,float16,bfloat16,int8,int4",
    show_default=True,
    help="Comma-separated; float32 always, which the others are compared with.",
)
@ratios_option("0,0.05,0.15,1")
@json_option
def formats(
    make_suite: Callable[[], Suite],
    model: str | None,
    seed: int,
    embedding: str | None,
    listed: str,
    ratios: list[float],
    as_json: bool,
) -> None:
    """The formats of stores beside each other: bytes, time to load, error, EM and F1 on fused KV.

    Each format's store is made by an ingest of its own, so this takes as many times as long.

    \b
    python -m benchmarks formats --limit 20                 a first look, in minutes
    """
    chosen = check_formats(listed.split(","))
    suite = make_suite()
    loaded = CausalModel.load(find_model(model))
    found = None if embedding is None else imported(embedding)
    with TemporaryDirectory(prefix="fusionrag-bench-") as directory, bars() as progress:
        result = measure_formats(loaded, suite, chosen, ratios, Path(directory), found, progress)
    result["seed"] = seed
    if as_json:
        print_json(result)
        return
    out.print(formats_markdown(result["formats"]), markup=False)
    out.print()
    out.print(format_scores_markdown(result["rows"]), markup=False)
