"""The command that answers over HTTP: serve."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fusionrag_integrations.cli.console import (
    FilePath,
    closed_later,
    embedding_option,
    err,
    existing,
    model_for,
    model_option,
    open_engine,
    out,
    salt_option,
    store_option,
)
from fusionrag_integrations.cli.numbers import MOST, Number, count
from fusionrag_integrations.cli.serve_ray import RayOptions, ray_options, serve_on_ray
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.objects.opening import is_url
from fusionrag_integrations.support.arenas import share_arenas
from fusionrag_integrations.support.beating import Beating

if TYPE_CHECKING:
    from fusionrag_integrations.server import Keys, Limits

NEEDED = ("fastapi", "prometheus_client", "uvicorn")  # of the extra "serve"
LOOPBACK = "127.0.0.1"
REFRESH = 60.0  # seconds


@click.command()
@store_option
@model_option
@embedding_option
@salt_option
@click.option("--host", default=LOOPBACK, show_default=True, help="The address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8000,
    show_default=True,
    help="Its port; 0 for one that is free.",
)
@click.option(
    "--refresh",
    type=Number(0.1, float(MOST)),
    help="For a store at a URL: seconds between looks for a newer version.  [default: 60]",
)
@click.option(
    "--keys",
    "keys_file",
    type=FilePath(exists=True, dir_okay=False),
    help="A TOML file of API keys.  [default: everybody may do everything]",
)
@click.option(
    "--at-once",
    type=count(),
    default=16,
    show_default=True,
    help="Answers at the same time, and as many look-ups beside them.",
)
@click.option(
    "--queue",
    type=count(0),
    default=64,
    show_default=True,
    help="Requests of each kind that may wait; those beyond get status 429.",
)
@click.option(
    "--max-body",
    type=count(),
    default=8,
    show_default=True,
    help="The largest body of a request, in MiB.",
)
@click.option(
    "--grace",
    type=Number(0.0, float(MOST)),
    default=30.0,
    show_default=True,
    help="Seconds that answers have to finish when the server is told to end.",
)
@ray_options
def serve(
    store: Path | str,
    model: str | None,
    embedding: str | None,
    salt: str,
    host: str,
    port: int,
    refresh: float | None,
    keys_file: Path | None,
    at_once: int,
    queue: int,
    max_body: int,
    grace: float,
    ray: str | None,
    replicas: tuple[int, int] | None,
    replica_cpus: float | None,
    replica_gpus: float | None,
) -> None:
    """Answer over HTTP, by OpenAI's protocol, from a store's KV. Needs the extra 'serve'.

    SIGTERM or Ctrl-C ends it: answers under way finish, others get status 503. Requests are logged
    to standard error, a line of JSON each, without their texts.

    \b
    fusionrag serve --store my-store
    fusionrag serve --store my-store --host 0.0.0.0 --keys keys.toml
    fusionrag serve --store my-store --ray --replicas 2
    """
    on_ray = RayOptions(ray, replicas, replica_cpus, replica_gpus)
    _check_extra("serve" if ray is None else "ray")
    from fusionrag_integrations.server import Keys, Limits

    if refresh is not None and not is_url(store):
        raise InvalidInputError(
            f"--refresh is for a store at a URL; the directory {store} is followed at once."
        )
    limits = Limits(at_once, queue, max_body << 20, grace)
    keys = None if keys_file is None else Keys.read(keys_file)
    if keys is None and host != LOOPBACK:
        err.print("There are no --keys: whoever reaches this server may do everything.")
    if ray is not None:
        from fusionrag_integrations.ray.settings import EngineSettings

        found = model_for(model, existing(store))
        name = str(Path(found).resolve()) if Path(found).exists() else str(found)
        place = str(store) if is_url(store) else str(Path(store).resolve())
        engine = EngineSettings(name, place, embedding, salt, refresh=refresh or REFRESH)
        serve_on_ray(on_ray, engine, keys, limits, host, port)
    else:
        _serve_here(store, model, embedding, salt, refresh, keys, limits, host, port)


def _serve_here(
    store: Path | str,
    model: str | None,
    embedding: str | None,
    salt: str,
    refresh: float | None,
    keys: Keys | None,
    limits: Limits,
    host: str,
    port: int,
) -> None:
    """By an engine in this process."""
    from fusionrag_integrations.server import Server, bound
    from fusionrag_integrations.server.records import log_as_json

    share_arenas()  # before there are threads
    with bound(host, port) as listening:
        engine = open_engine(model, existing(store), embedding, salt)
        place = f"http://{host}:{listening.getsockname()[1]}/v1"

        def tell() -> None:
            out.print(f"{engine.model_name} answers at {place}", markup=False)

        log_as_json()
        if is_url(store):
            closed_later(Beating("fusionrag-refresh", refresh or REFRESH, engine.refresh))
        Server(engine, keys=keys, limits=limits, on_ready=tell).run(sockets=[listening])


def _check_extra(extra: str) -> None:
    """Raises `InvalidInputError` where something of it is missing."""
    needed = {"serve": NEEDED, "ray": ("ray", *NEEDED)}[extra]
    if missing := [name for name in needed if find_spec(name) is None]:
        command = "fusionrag serve" if extra == "serve" else "fusionrag serve --ray"
        raise InvalidInputError(
            f"`{command}` needs {', '.join(missing)}: install the extra, "
            f"pip install 'fusionrag-integrations[{extra}]'."
        )
