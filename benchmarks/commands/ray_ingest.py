"""The command that measures ingest by several workers."""

from __future__ import annotations

import click

from benchmarks.ray_ingest import measure_ray_ingest
from fusionrag_integrations.cli.console import bars, json_option, out, print_json
from fusionrag_integrations.cli.models import MODEL_HELP, find_model
from fusionrag_integrations.cli.numbers import count


@click.command()
@click.option("--model", default="smollm2", show_default=True, help=MODEL_HELP)
@click.option("--chunks", type=count(8), default=48, show_default=True)
@click.option(
    "--pairs", type=count(), default=3, show_default=True, help="Of one worker's and two's turns."
)
@json_option
def ray_ingest(model: str, chunks: int, pairs: int, as_json: bool) -> None:
    """How much faster two workers on Ray are than one, and two plain processes."""
    with bars() as progress:
        result = measure_ray_ingest(find_model(model), chunks, pairs, progress)
    if as_json:
        print_json(result)
        return
    speedup = result["speedup"]
    out.print(
        f"Two workers on Ray are {speedup['ray']:.2f} times as fast as one, and two plain "
        f"processes {speedup['processes']:.2f} times.",
        highlight=False,
    )
