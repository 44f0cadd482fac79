"""The command that measures what object storage adds to the first token."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.shared_ttft import WAYS, measure_shared_ttft
from fusionrag_integrations.cli.console import bars, json_option, out, print_json
from fusionrag_integrations.cli.models import MODEL_HELP, find_model
from fusionrag_integrations.cli.numbers import MILLISECONDS, SHARE, count
from fusionrag_integrations.execution.hf.model import CausalModel


@click.command()
@click.argument("url")
@click.option("--model", default="smollm2", show_default=True, help=MODEL_HELP)
@click.option("--questions", type=count(2), default=20, show_default=True)
@click.option("--ratio", type=SHARE, default=0.15, show_default=True)
@click.option(
    "--gap-ms",
    type=MILLISECONDS,
    default=50.0,
    show_default=True,
    help="Between retrieval, which prefetches, and the request.",
)
@json_option
def shared(
    url: str, model: str, questions: int, ratio: float, gap_ms: float, as_json: bool
) -> None:
    """How much later the first token comes where KV is at URL, which must hold no store yet."""
    with bars() as progress, TemporaryDirectory() as directory:
        result = measure_shared_ttft(
            CausalModel.load(find_model(model)),
            url,
            Path(directory, "store"),
            questions,
            ratio,
            gap_ms,
            progress,
        )
    if as_json:
        print_json(result)
        return
    for way in WAYS:
        low, high = result["spread_ms"][way]
        out.print(f"{way:10} {result['ttft_ms'][way]:8.0f} ms ({low:.0f} to {high:.0f})")
    second, hidden = result["second"], result["hidden"]
    out.print(f"second / directory {second[0]:.2f} ({second[1]:.2f} to {second[2]:.2f})")
    out.print(f"hidden by prefetch {hidden[0]:.0%} ({hidden[1]:.0%} to {hidden[2]:.0%})")
