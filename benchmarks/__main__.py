"""`python -m benchmarks`, in a checkout: what maintainers measure."""

from __future__ import annotations

import click

from benchmarks.commands import (
    cost,
    formats,
    ray_ingest,
    results,
    routers,
    scale,
    shared,
    speed,
    store,
)
from fusionrag_integrations.cli.commands import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure the parts of the package, and make the tables and figures of its docs."""


for command in (
    *(speed.kernel, speed.offline, speed.memory, store.store, speed.traffic, formats.formats),
    *(
        cost.cost,
        scale.scale,
        shared.shared,
        ray_ingest.ray_ingest,
        routers.routers,
        results.leads,
        results.figures,
        results.report,
    ),
):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
