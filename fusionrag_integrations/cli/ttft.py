"""The command that times the first token: bench ttft."""

from __future__ import annotations

from typing import Any

import click

from fusionrag_integrations.cli.console import bars, json_option, out, print_json
from fusionrag_integrations.cli.numbers import counts, ratios_option
from fusionrag_integrations.cli.shapes import (
    device_option,
    dtype_option,
    load_model,
    model_option,
    repeat_option,
    shape_option,
    stored_calibration,
)


@click.command()
@shape_option
@model_option
@click.option(
    "--context", type=counts, default="1000", show_default=True, help="Tokens of prompts."
)
@click.option("--strategies", default="fusionrag", show_default=True, help="Comma-separated.")
@ratios_option("0,0.05,0.15,1")
@click.option(
    "--kv",
    "tier",
    type=click.Choice(["device", "host", "disk"]),
    default="host",
    show_default=True,
    help="Where the chunks' KV is kept.",
)
@device_option
@dtype_option
@repeat_option
@json_option
def ttft(
    shape: str | None,
    model: str | None,
    context: list[int],
    strategies: str,
    ratios: list[float],
    tier: Any,
    device: str,
    dtype: str,
    repeat: int,
    as_json: bool,
) -> None:
    """Time to first token beside full attention, and beside what this machine could reach.

    \b
    fusionrag bench ttft --config qwen2.5-0.5b --context 1000,4000 --dtype bfloat16
    """
    from fusionrag_integrations.bench.strategies import FULL, REUSE, make_strategies
    from fusionrag_integrations.bench.tables import ttft_markdown
    from fusionrag_integrations.bench.ttft import measure_ttft

    names = strategies.split(",")
    made = make_strategies(names, ratios, ["isolated"])
    asked = [s for s in made if s.name in names or s not in (FULL, REUSE)]
    loaded = load_model(shape, model, device, dtype)
    with bars() as progress:
        result = measure_ttft(
            loaded,
            context,
            list(dict.fromkeys([FULL, *asked])),
            tier,
            repeat,
            stored_calibration(loaded),
            progress,
        )
    if as_json:
        print_json(result)
        return
    out.print(ttft_markdown(result["rows"]), markup=False)
