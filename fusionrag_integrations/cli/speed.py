"""Commands that measure speed and memory: bench ttft, kernel, offline, memory and store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click

from fusionrag_integrations.cli.console import bars, err, json_option, out, print_json
from fusionrag_integrations.cli.models import MODEL_HELP, find_model
from fusionrag_integrations.cli.numbers import (
    MILLISECONDS,
    SEED,
    SHARE,
    count,
    counts,
    ratios_option,
    shares,
)
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.types import KVFormat

if TYPE_CHECKING:
    from fusionrag_integrations.model import CausalModel
    from fusionrag_integrations.types import Calibration

shape_option = click.option(
    "--config",
    "shape",
    help="Random weights of a known shape: qwen2.5-0.5b, qwen2.5-7b, qwen2.5-14b, mistral-7b, "
    "llama-3.1-8b; or demo.  [default: demo]",
)
model_option = click.option("--model", help=f"In the place of --config. {MODEL_HELP}")
device_option = click.option(
    "--device", default="auto", show_default=True, help="cuda where there is one; or cpu."
)
dtype_option = click.option(
    "--dtype", default="auto", show_default=True, help="float32, bfloat16 or float16."
)
repeat_option = click.option(
    "--repeat", type=count(), default=5, show_default=True, help="Calls of each."
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
    help="Where the chunks' KV lies.",
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
    loaded = _loaded(shape, model, device, dtype)
    with bars() as progress:
        result = measure_ttft(
            loaded,
            context,
            list(dict.fromkeys([FULL, *asked])),
            tier,
            repeat,
            _calibration(loaded),
            progress,
        )
    if as_json:
        print_json(result)
        return
    out.print(ttft_markdown(result["rows"]), markup=False)


@click.command()
@click.option(
    "--keys", type=counts, default="4096", show_default=True, help="How many; between commas."
)
@click.option(
    "--ratios",
    type=shares,
    default="0.01,0.15,1",
    show_default=True,
    help="Rows for each key.",
)
@click.option("--heads", type=count(), default=28, show_default=True)
@click.option("--kv-heads", type=count(), default=4, show_default=True)
@click.option("--head-size", type=count(), default=128, show_default=True)
@device_option
@dtype_option
@repeat_option
@json_option
def kernel(
    keys: list[int],
    ratios: list[float],
    heads: int,
    kv_heads: int,
    head_size: int,
    device: str,
    dtype: str,
    repeat: int,
    as_json: bool,
) -> None:
    """The attention kernel beside PyTorch's, on one layer's shape; by default Qwen2.5-7B's."""
    from fusionrag_integrations.bench.kernel import HeadShape, measure_kernel
    from fusionrag_integrations.bench.shapes import random_dtype
    from fusionrag_integrations.bench.tables import kernel_markdown
    from fusionrag_integrations.model import torch_device

    if heads % kv_heads:
        raise InvalidInputError(f"--heads {heads} is no multiple of --kv-heads {kv_heads}.")
    target = torch_device(device)
    with bars() as progress:
        result = measure_kernel(
            HeadShape(heads, kv_heads, head_size),
            keys,
            ratios,
            random_dtype(dtype, target),
            target,
            repeat,
            progress,
        )
    if as_json:
        print_json(result)
        return
    out.print(kernel_markdown(result["rows"]), markup=False)


@click.command()
@shape_option
@model_option
@click.option("--chunk-tokens", type=count(), default=256, show_default=True)
@click.option("--neighbours", type=count(), default=10, show_default=True)
@click.option(
    "--chunks",
    type=count(),
    default=16,
    show_default=True,
    help="Of a whole ingest, each of 130 words.",
)
@device_option
@dtype_option
@repeat_option
@json_option
def offline(
    shape: str | None,
    model: str | None,
    chunk_tokens: int,
    neighbours: int,
    chunks: int,
    device: str,
    dtype: str,
    repeat: int,
    as_json: bool,
) -> None:
    """What ingest costs a chunk: its pass alone, its pass behind neighbours, and the whole."""
    from fusionrag_integrations.bench.offline import measure_ingest, measure_offline

    loaded = _loaded(shape, model, device, dtype)
    passes = measure_offline(loaded, chunk_tokens, neighbours, repeat)
    with bars() as progress:
        ingest = measure_ingest(loaded, chunks, progress)
    if as_json:
        print_json(passes | {"ingest": ingest})
        return
    out.print(
        f"A chunk of {chunk_tokens} tokens alone {passes['isolated_ms']:.1f} ms, behind "
        f"{neighbours} neighbours {passes['fused_ms']:.1f} ms: {passes['ratio']:.2f}x\n"
        f"{passes['together']} in a pass: {passes['isolated_together_ms']:.1f} ms and "
        f"{passes['fused_together_ms']:.1f} ms a chunk\n"
        f"Ingest of {ingest['chunks']} chunks of {ingest['chunk_tokens']} tokens: "
        f"{ingest['chunk_ms']:.1f} ms a chunk ("
        + ", ".join(f"{stage} {ms:.1f}" for stage, ms in ingest["stage_ms"].items())
        + ")",
        highlight=False,
        soft_wrap=True,
    )


@click.command()
@shape_option
@model_option
@click.option("--context", type=count(), default=1000, show_default=True)
@click.option("--ratio", type=SHARE, default=0.15, show_default=True)
@device_option
@dtype_option
@json_option
def memory(
    shape: str | None,
    model: str | None,
    context: int,
    ratio: float,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """What a further request holds on the device, over chunks that others hold already."""
    from fusionrag_integrations.bench.memory import measure_memory

    result = measure_memory(_loaded(shape, model, device, dtype), context, ratio)
    if as_json:
        print_json(result)
        return
    out.print(
        f"{result['context']:,} tokens, of which {result['own_tokens']:,} are its own with the "
        f"answer's: {result['in_place_bytes'] / 1e6:.1f} MB over chunks where they lie "
        f"({result['beyond_own']:.1%} beside its own tokens), "
        f"{result['placed_bytes'] / 1e6:.1f} MB with a copy of them",
        highlight=False,
        soft_wrap=True,
    )


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
    fusionrag bench store --config qwen2.5-0.5b --context 8000 --dtype float32 --ratio 0
    """
    from fusionrag_integrations.bench.store import measure_store
    from fusionrag_integrations.bench.tables import store_markdown

    loaded = _loaded(shape, model, device, dtype)
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
            calibration=_calibration(loaded),
        )
    if as_json:
        print_json(result)
        return
    out.print(store_markdown(result), markup=False)


def _calibration(model: CausalModel) -> Calibration | None:
    """What was measured of the model for its selector, where that lies beside it."""
    from fusionrag_integrations.calibration import CALIBRATION_FILE, read_calibration
    from fusionrag_integrations.prompt import ingest_surroundings

    path = model.directory / CALIBRATION_FILE
    signature = model.signature(ingest_surroundings(model.tokenizer)) if path.exists() else ""
    return read_calibration(path, signature)


@click.command()
@click.option("--questions", type=count(), default=1000, show_default=True)
@click.option("--chunks", type=count(), default=10, show_default=True, help="Of each question.")
@click.option("--known", type=count(), default=500, show_default=True, help="Chunks in the store.")
@click.option("--shared", type=count(), default=150, show_default=True, help="New ones that recur.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@json_option
def traffic(questions: int, chunks: int, known: int, shared: int, seed: int, as_json: bool) -> None:
    """What keeping new chunks saves beside a prefix cache, on simulated questions.

    Of their chunks 60% are known, 30% are new and shared, 10% are new and come once.
    """
    from fusionrag_integrations.bench.traffic import Traffic, simulate

    result = simulate(Traffic(questions, chunks, known, shared, seed=seed))
    if as_json:
        print_json(result)
        return
    ours, prefix = result["ours"], result["prefix_cache"]
    out.print(
        f"Prefix cache: {prefix['stored']:,} chunks stored, {prefix['computed']:,} computed.\n"
        f"Ours: {ours['stored']:,} stored ({result['storage_saved']:.0%} less), "
        f"{ours['computed']:,} computed ({result['computing_saved']:.0%} less; with ingest "
        f"{result['computing_saved_with_ingest']:.0%}, with 15% of what is reused "
        f"{result['computing_saved_with_recomputed']:.0%}), {ours['hit_rate']:.1%} found.",
        highlight=False,
        soft_wrap=True,
    )


def _loaded(shape: str | None, model: str | None, device: str, dtype: str) -> CausalModel:
    """A model of a shape, or one by name; the demo's where neither is given."""
    from fusionrag_integrations.bench.shapes import model_of_shape
    from fusionrag_integrations.model import CausalModel

    if shape is not None and model is not None:
        raise InvalidInputError("Give --config or --model, not both.")
    with err.status("Loading the model"):
        if shape is not None and shape != "demo":
            return model_of_shape(shape, device, dtype)
        return CausalModel.load(find_model(model), device, dtype)
