"""Commands that simulate more than one machine, and count what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchmarks.results import scale_views
from benchmarks.results.marks import Mark
from benchmarks.scale.dollars import Prices
from benchmarks.scale.driver import measure_driver
from benchmarks.scale.routing import Setting
from benchmarks.scale.serving import Plan
from benchmarks.scale.studies import costs, hindsight, ingesting, routing, serving
from fusionrag_integrations.cli.commands import Commands
from fusionrag_integrations.cli.console import FilePath, json_option, out, print_json
from fusionrag_integrations.cli.numbers import SEED, SHARE, Number, count, counts

EXAMPLE = Prices()
DOLLARS = Number(0.0, 1e6)

results_option = click.option(
    "--results",
    type=FilePath(exists=True, file_okay=False),
    default=Path("docs/benchmarks"),
    show_default=True,
    help="The directory of what was measured.",
)
questions_option = click.option(
    "--questions",
    type=FilePath(exists=True, dir_okay=False),
    multiple=True,
    help="JSON lines of questions and their passages; may be given several times.",
)


@click.group(cls=Commands)
def scale() -> None:
    """Simulate more than one machine from what was measured on one; docs/scale.md tells of it."""


@scale.command("routing")
@results_option
@questions_option
@click.option("--requests", type=count(10), default=12_000, show_default=True)
@click.option("--load", type=SHARE, default=0.7, show_default=True, help="Of the devices' time.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@json_option
def route(
    results: Path, questions: tuple[Path, ...], requests: int, load: float, seed: int, as_json: bool
) -> None:
    """Every way to choose a replica on the same requests, four replicas.

    \b
    python -m benchmarks scale routing --questions squad.jsonl --json
    """
    found = routing(results, questions, Setting(requests, load, seed))
    _show(found, as_json, scale_views.hits, scale_views.times)


@scale.command("hindsight")
@results_option
@questions_option
@click.option("--requests", type=count(10), default=12_000, show_default=True)
@click.option("--steps", type=count(), default=400_000, show_default=True, help="Of annealing.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@json_option
def place(
    results: Path, questions: tuple[Path, ...], requests: int, steps: int, seed: int, as_json: bool
) -> None:
    """What four memories would hold of the prompts, were these known beforehand."""
    found = hindsight(results, questions, Setting(requests, seed=seed), steps)
    _show(found, as_json, scale_views.hindsight)


@scale.command("serving")
@results_option
@click.option("--replicas", type=counts, default="1,2,4,16,64,256", show_default=True)
@click.option("--requests", type=count(10), default=150, show_default=True, help="Of each replica.")
@click.option("--load", type=SHARE, default=0.5, show_default=True, help="Of the devices' time.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@json_option
def serve(
    results: Path, replicas: list[int], requests: int, load: float, seed: int, as_json: bool
) -> None:
    """From one replica to hundreds over one corpus."""
    plan = Plan(replicas=replicas, requests=requests, load=load, seed=seed)
    _show(serving(results, plan), as_json, scale_views.serving)


@scale.command("ingest")
@results_option
@json_option
def ingest(results: Path, as_json: bool) -> None:
    """An ingest by 1 to 16 workers."""
    _show(ingesting(results), as_json, scale_views.ingest)


@scale.command("cost")
@results_option
@click.option("--gpu-hour", type=DOLLARS, default=EXAMPLE.gpu_hour, show_default=True)
@click.option("--object-gb-month", type=DOLLARS, default=EXAMPLE.object_gb_month, show_default=True)
@click.option("--months", type=Number(0.1, 1e3), default=EXAMPLE.months, show_default=True)
@json_option
def cost(
    results: Path, gpu_hour: float, object_gb_month: float, months: float, as_json: bool
) -> None:
    """What storage, ingest and serving cost, in dollars, and when keeping KV pays."""
    prices = Prices(gpu_hour=gpu_hour, object_gb_month=object_gb_month, months=months)
    views = (scale_views.kv_bytes, scale_views.corpora, scale_views.break_even)
    _show(costs(results, prices), as_json, *views, scale_views.serving_cost)


@scale.command("driver")
@click.option("--chunks", type=count(), default=1_000, show_default=True)
@json_option
def driver(chunks: int, as_json: bool) -> None:
    """Measure what an ingest does beside the model's passes."""
    found = measure_driver(chunks)
    if as_json:
        print_json(found)
        return
    out.print(f"{found['ms_a_chunk']:.1f} ms a chunk, of {found['chunks']:,} chunks")


def _show(found: dict[str, Any], as_json: bool, *views: Any) -> None:
    if as_json:
        print_json(found)
        return
    for view in views:
        out.print(view(Mark((), {"": found}, {})) + "\n", markup=False)
