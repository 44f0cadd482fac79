"""Commands that time: bench ttft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fusionrag_integrations.cli.console import bars, err, json_option, numbers, out, print_json
from fusionrag_integrations.errors import InvalidInputError


@click.command()
@click.option(
    "--config",
    "shape",
    help="Random weights of a known shape: qwen2.5-0.5b, qwen2.5-7b, qwen2.5-14b, mistral-7b, "
    "llama-3.1-8b; or demo.  [default: demo]",
)
@click.option("--model", help="A model directory or hub name, in the place of --config.")
@click.option("--context", default="1000", show_default=True, help="Tokens of prompts.")
@click.option("--strategies", default="fusionrag", show_default=True, help="Comma-separated.")
@click.option("--ratios", default="0,0.05,0.15,1", show_default=True, help="Shares to recompute.")
@click.option(
    "--kv",
    "tier",
    type=click.Choice(["device", "host", "disk"]),
    default="host",
    show_default=True,
    help="Where the chunks' KV lies.",
)
@click.option(
    "--device", default="auto", show_default=True, help="cuda where there is one; or cpu."
)
@click.option("--dtype", default="auto", show_default=True, help="float32, bfloat16 or float16.")
@click.option("--repeat", type=click.IntRange(min=1), default=5, show_default=True)
@json_option
def ttft(
    shape: str | None,
    model: str | None,
    context: str,
    strategies: str,
    ratios: str,
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
    from transformers.utils.logging import disable_progress_bar

    from fusionrag_integrations.bench.shapes import model_of_shape
    from fusionrag_integrations.bench.strategies import Strategy, make_strategies
    from fusionrag_integrations.bench.tables import ttft_markdown
    from fusionrag_integrations.bench.ttft import measure_ttft
    from fusionrag_integrations.calibration import CALIBRATION_FILE, read_calibration
    from fusionrag_integrations.demo import MODEL_DIR
    from fusionrag_integrations.model import CausalModel
    from fusionrag_integrations.prompt import ingest_prefix

    if shape is not None and model is not None:
        raise InvalidInputError("Give --config or --model, not both.")
    contexts = [int(tokens) for tokens in numbers("--context", context, low=1.0)]
    names = strategies.split(",")
    made = make_strategies(names, numbers("--ratios", ratios, high=1.0), ["isolated"])
    asked = [strategy for strategy in made if strategy.name in names]
    disable_progress_bar()  # it would be drawn over ours
    with err.status("Loading the model"):
        if shape is not None and shape != "demo":
            loaded = model_of_shape(shape, device, dtype)
        else:
            loaded = CausalModel.load(model or MODEL_DIR, device, dtype)
    path = Path(loaded.source) / CALIBRATION_FILE
    signature = loaded.signature(ingest_prefix(loaded.tokenizer)) if path.exists() else ""
    with bars() as progress:
        result = measure_ttft(
            loaded,
            contexts,
            list(dict.fromkeys([Strategy("full_attention", "none", 1.0), *asked])),
            tier,
            repeat,
            read_calibration(path, signature),
            progress,
        )
    if as_json:
        print_json(result)
        return
    out.print(ttft_markdown(result["rows"]), markup=False)
