"""The command that measures what object storage adds to the first token."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import click

from benchmarks.shared_ttft import measure_shared_ttft
from fusionrag_integrations.cli.console import bars, json_option, out, print_json
from fusionrag_integrations.cli.models import MODEL_HELP, find_model
from fusionrag_integrations.cli.numbers import MILLISECONDS, SHARE, count
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.kv.types import KVFormat


@click.command()
@click.argument("url")
@click.option("--model", default="smollm2", show_default=True, help=MODEL_HELP)
@click.option("--questions", type=count(2), default=20, show_default=True)
@click.option("--ratio", type=SHARE, default=0.15, show_default=True)
@click.option(
    "--gap-ms",
    "gaps_ms",
    type=MILLISECONDS,
    multiple=True,
    default=(0.0, 50.0, 200.0),
    show_default=True,
    help="Between retrieval, which prefetches, and the request; may be given again.",
)
@click.option("--kv-format", type=click.Choice(get_args(KVFormat)))
@json_option
def shared(
    url: str,
    model: str,
    questions: int,
    ratio: float,
    gaps_ms: tuple[float, ...],
    kv_format: KVFormat | None,
    as_json: bool,
) -> None:
    """How much later the first token comes where KV is at URL, which must hold no store yet."""
    with bars() as progress, TemporaryDirectory() as directory:
        result = measure_shared_ttft(
            CausalModel.load(find_model(model)),
            url,
            Path(directory, "store"),
            questions,
            ratio,
            gaps_ms,
            kv_format,
            progress,
        )
    if as_json:
        print_json(result)
        return
    ways = {way: result[way] for way in ("directory", "first")}
    ways |= {f"prefetched {p['gap_ms']:g} ms": p["times"] for p in result["prefetched"]}
    ways["second"] = result["second"]
    for way, times in ways.items():
        low, high = times["spread_ms"]
        out.print(f"{way:20} {times['ttft_ms']:8.0f} ms ({low:.0f} to {high:.0f})")
    middle, low, high = result["later"]
    out.print(f"second / directory {middle:.2f} ({low:.2f} to {high:.2f})")
    for prefetched in result["prefetched"]:
        middle, low, high = prefetched["hidden"]
        out.print(f"hidden at {prefetched['gap_ms']:g} ms {middle:.0%} ({low:.0%} to {high:.0%})")
