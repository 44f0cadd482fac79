"""The command that compares routers of replicas on Ray."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.results.tables import routers_markdown
from fusionrag_integrations.cli.console import bars, json_option, out, print_json
from fusionrag_integrations.cli.models import MODEL_HELP, find_model
from fusionrag_integrations.cli.numbers import SHARE, Number, count


@click.command()
@click.option("--model", default="demo", show_default=True, help=MODEL_HELP)
@click.option("--replicas", type=count(), default=4, show_default=True)
@click.option("--topics", type=count(), default=40, show_default=True, help="Of eight chunks each.")
@click.option("--requests", type=count(), default=600, show_default=True)
@click.option(
    "--memory",
    type=SHARE,
    default=0.25,
    show_default=True,
    help="Of all KV, for which each replica has host memory.",
)
@click.option(
    "--popularity", type=Number(0.0, 5.0), default=0.8, show_default=True, help="Zipf's exponent."
)
@json_option
def routers(
    model: str,
    replicas: int,
    topics: int,
    requests: int,
    memory: float,
    popularity: float,
    as_json: bool,
) -> None:
    """Which share of their KV requests find in memory, by the router of the replicas. Needs Ray.

    \b
    python -m benchmarks routers --json > docs/benchmarks/cpu/routers.json
    """
    from benchmarks.routers import ROUTERS, Workload, compare_routers

    workload = Workload(
        replicas=replicas,
        topics=topics,
        requests=requests,
        memory=memory,
        popularity=popularity,
    )
    with bars() as progress:
        result = compare_routers(Path(find_model(model)), workload, list(ROUTERS), progress)
    if as_json:
        print_json(result)
        return
    out.print(routers_markdown(result["rows"]), markup=False)
