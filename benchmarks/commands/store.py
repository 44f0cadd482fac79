"""The command that measures how fast KV comes from a store."""

from __future__ import annotations

from typing import Any, get_args

import click

from benchmarks.results.tables import store_markdown
from benchmarks.store import measure_store
from fusionrag_integrations.cli.console import bars, json_option, out, print_json
from fusionrag_integrations.cli.numbers import MILLISECONDS, SHARE, count
from fusionrag_integrations.cli.shapes import (
    device_option,
    dtype_option,
    load_model,
    model_option,
    repeat_option,
    shape_option,
    stored_calibration,
)
from fusionrag_integrations.store.kv.types import KVFormat


@click.command()
@shape_option
@model_option
@click.option(
    "--context",
    type=count(),
    help="Tokens of prompts.  [default: 8000, or as many as the model holds]",
)
@click.option(
    "--parts",
    default="load,lookup,prefetch",
    show_default=True,
    help="What to measure, comma-separated.",
)
@click.option(
    "--format",
    "kv_format",
    type=click.Choice(get_args(KVFormat)),
    help="How KV is kept.  [default: the model's dtype]",
)
@click.option(
    "--records",
    type=count(),
    default=10_000,
    show_default=True,
    help="Among which small ones are looked up.",
)
@click.option("--ratio", type=SHARE, default=0.15, show_default=True)
@click.option(
    "--gap-ms",
    type=MILLISECONDS,
    default=50.0,
    show_default=True,
    help="Between retrieval, which prefetches, and the request.",
)
@device_option
@dtype_option
@repeat_option
@json_option
def store(
    shape: str | None,
    model: str | None,
    context: int | None,
    parts: str,
    kv_format: Any,
    records: int,
    ratio: float,
    gap_ms: float,
    device: str,
    dtype: str,
    repeat: int,
    as_json: bool,
) -> None:
    """How fast KV comes from a store: reads beside plain ones, lookups, what a prefetch hides.

    \b
    python -m benchmarks store --config qwen2.5-0.5b --context 8000 --dtype float32 --ratio 0
    """
    loaded = load_model(shape, model, device, dtype)
    with bars() as progress:
        result = measure_store(
            loaded,
            context or min(8000, loaded.context_window - 1),
            progress,
            parts=parts.split(","),
            kv_format=kv_format,
            records=records,
            ratio=ratio,
            gap_ms=gap_ms,
            repeat=repeat,
            calibration=stored_calibration(loaded),
        )
    if as_json:
        print_json(result)
        return
    out.print(store_markdown(result), markup=False)
