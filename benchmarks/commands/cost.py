"""The command that counts the layers that strategies run in a deeper model."""

from __future__ import annotations

from dataclasses import asdict

import click

from benchmarks.cost import count_work
from fusionrag_integrations.bench.strategies import STRATEGY_NAMES, make_strategies
from fusionrag_integrations.cli.console import bars, json_option, out, print_json
from fusionrag_integrations.cli.numbers import count, ratios_option
from fusionrag_integrations.cli.shapes import stored_calibration
from fusionrag_integrations.demo import MODEL_DIR
from fusionrag_integrations.demo.suites import demo_suite
from fusionrag_integrations.execution.hf.model import CausalModel


@click.command()
@click.option("--layers", type=count(2), default=28, show_default=True)
@click.option("--strategies", help="Comma-separated.  [default: all]")
@ratios_option("0,0.05,0.1,0.15")
@json_option
def cost(layers: int, strategies: str | None, ratios: list[float], as_json: bool) -> None:
    """Count the layers that each strategy runs in a model of another depth, with random weights.

    The prompts are the demo's. Our own selector works as calibrated for the demo's model, at the
    same relative depth.
    """
    demo = CausalModel.load(MODEL_DIR)
    names = STRATEGY_NAMES if strategies is None else tuple(strategies.split(","))
    with bars() as progress:
        rows = count_work(
            layers,
            demo_suite(seed=0, questions_a_kind=2),
            make_strategies(names, ratios, ["isolated"]),
            demo,
            stored_calibration(demo),
            progress,
        )
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        out.print(f"{row.strategy:16} {row.ratio:5.0%} {row.work:7.1%}")
