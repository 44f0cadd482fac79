"""`index --ray`: the command's options for workers on Ray, and what is printed of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fusionrag_integrations.cli.console import bars, model_for, out
from fusionrag_integrations.cli.numbers import MOST, Number, count
from fusionrag_integrations.cli.signals import terminable
from fusionrag_integrations.documents.named import imported
from fusionrag_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    from fusionrag_integrations.documents.types import Document
    from fusionrag_integrations.ray.indexing import RayReport

F = TypeVar("F", bound=Callable[..., Any])

_HERE = "local"
_OPTIONS = ("workers", "cpus_per_worker", "gpus_per_worker", "price_per_hour")


def _address(context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    if given is None or given in (_HERE, "auto") or ":" in given:
        return given
    raise click.BadParameter(
        f"{given!r} is no address; give host:port, 'auto', or nothing, and PATHS before it."
    )


def ray_options(command: F) -> F:
    """The options of `index` for workers on Ray."""
    for option in (
        click.option(
            "--price-per-hour",
            type=Number(0.0, float(MOST)),
            help="With --ray: of a worker, so that the cost is told.",
        ),
        click.option(
            "--gpus-per-worker",
            type=Number(0.0, float(MOST)),
            help="With --ray: may be a part of one.  [default: 0]",
        ),
        click.option("--cpus-per-worker", type=count(), help="With --ray.  [default: 1]"),
        click.option(
            "--workers",
            type=count(),
            help="With --ray: how many processes hold the model.  [default: 1]",
        ),
        click.option(
            "--ray",
            metavar="[ADDRESS]",
            is_flag=False,
            flag_value=_HERE,
            callback=_address,
            help="Compute by workers on Ray: at host:port or 'auto', or started on this machine. "
            "Needs the extra 'ray'.",
        ),
    ):
        command = option(command)
    return command


def refuse_without_ray(given: dict[str, Any]) -> None:
    """Raise `InvalidInputError` where an option is given that only workers have."""
    if names := [name for name in _OPTIONS if given[name] is not None]:
        option = f"--{names[0].replace('_', '-')}"
        raise InvalidInputError(
            f"{option} is for workers on Ray; give --ray, too, or leave it out."
        )


def index_with_ray(
    documents: Sequence[Document],
    model: str | None,
    store: Path | str,
    embedding: str | None,
    kv: str | None,
    given: dict[str, Any],
    **how: Any,
) -> RayReport:
    """Index by workers. given: the options of `ray_options`. how: as `index_on_ray` has it."""
    if kv == "none":
        raise InvalidInputError("--kv none computes no KV, so it needs no --ray; leave one out.")
    from fusionrag_integrations.ray.indexing import Workers, index_on_ray

    workers = Workers(
        given["workers"] or 1,
        given["cpus_per_worker"] or 1,
        given["gpus_per_worker"] or 0.0,
        given["price_per_hour"],
    )
    with terminable(), bars() as progress:
        return index_on_ray(
            documents,
            model_for(model, store),
            store,
            workers=workers,
            address=None if given["ray"] == _HERE else given["ray"],
            embedding=_no_embedding if embedding is None else partial(imported, embedding),
            progress=progress,
            **how,
        )


def account_of(report: RayReport) -> dict[str, Any]:
    """What `--json` adds of the workers."""
    return {name: value for name, value in asdict(report).items() if name != "ingest"} | {
        "seconds": report.ingest.seconds,
        "wall_seconds": report.seconds,
    }


def print_account(report: RayReport) -> None:
    """What the workers did, a line for each stage."""
    for stage in report.stages:
        line = f"{stage.stage:>9}: {stage.seconds:.1f} s"
        if stage.items:
            line += f", {stage.items} done"
        if stage.found:
            line += f", of which {stage.found} were there"
        if stage.lost:
            line += f", {stage.lost} begun by workers that were lost"
        if stage.kv_bytes:
            line += f", {stage.kv_bytes / 1e6:.1f} MB of KV"
        if stage.starts:
            line += f"; {stage.starts} starts, {stage.loading_seconds:.1f} s"
        out.print(line, markup=False)
    cost = "" if report.cost is None else f", at a cost of {report.cost:.2f}"
    out.print(f"{report.workers} workers, {report.seconds:.1f} s in all{cost}.", markup=False)


def _no_embedding() -> None:
    """The built-in one is taken."""
