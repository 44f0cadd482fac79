"""Commands that measure speed and memory: kernel, offline, memory, traffic."""

from __future__ import annotations

import click

from benchmarks.kernel import HeadShape, measure_kernel
from benchmarks.memory import measure_memory
from benchmarks.offline import measure_ingest, measure_offline
from benchmarks.results.tables import kernel_markdown
from benchmarks.traffic import Traffic, simulate
from fusionrag_integrations.bench.shapes import random_dtype
from fusionrag_integrations.cli.console import bars, json_option, out, print_json
from fusionrag_integrations.cli.numbers import SEED, SHARE, count, counts, shares
from fusionrag_integrations.cli.shapes import (
    device_option,
    dtype_option,
    load_model,
    model_option,
    repeat_option,
    shape_option,
)
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.devices import torch_device


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
    loaded = load_model(shape, model, device, dtype)
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
    result = measure_memory(load_model(shape, model, device, dtype), context, ratio)
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
