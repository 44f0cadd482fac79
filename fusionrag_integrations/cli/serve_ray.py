"""`fusionrag serve --ray`: the same server as replicas on Ray."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fusionrag_integrations.cli.console import err, out
from fusionrag_integrations.cli.numbers import MOST, Number, count
from fusionrag_integrations.cli.signals import terminable
from fusionrag_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    from fusionrag_integrations.ray.settings import EngineSettings, Replicas
    from fusionrag_integrations.server import Keys, Limits

F = TypeVar("F", bound=Callable[..., Any])

HERE = ""  # the value of --ray without an address


class ReplicaCounts(click.ParamType[tuple[int, int]]):
    """MIN, or MIN:MAX."""

    name = "MIN[:MAX]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        given, colon, most_given = str(value).partition(":")
        number: Any = count()
        least: int = number.convert(given, param, ctx)
        most: int = number.convert(most_given, param, ctx) if colon else least
        if least > most:
            self.fail(f"{value!r} has more at least than at most.", param, ctx)
        return least, most


@dataclass(frozen=True, slots=True)
class RayOptions:
    """What the options say. address: None without --ray."""

    address: str | None
    counts: tuple[int, int] | None
    cpus: float | None
    gpus: float | None

    def __post_init__(self) -> None:
        named = {
            "--replicas": self.counts,
            "--replica-cpus": self.cpus,
            "--replica-gpus": self.gpus,
        }
        given = [name for name, value in named.items() if value is not None]
        if self.address is None and given:
            raise InvalidInputError(f"{', '.join(given)} can only be given with --ray.")


def ray_options(command: F) -> F:
    """The options of a command that may run on Ray."""
    amount = Number(0.0, float(MOST))
    for option in reversed(
        (
            click.option(
                "--ray",
                is_flag=False,
                flag_value=HERE,
                metavar="[ADDRESS]",
                help="Serve by replicas on Ray, on the cluster at this address, or here.",
            ),
            click.option(
                "--replicas",
                type=ReplicaCounts(),
                help="With --ray: how many there are, or at least and at most.  [default: 1]",
            ),
            click.option(
                "--replica-cpus",
                type=amount,
                help="With --ray: CPUs that each replica takes.  [default: 1]",
            ),
            click.option(
                "--replica-gpus",
                type=amount,
                help="With --ray: GPUs that each takes.  [default: 1 where Ray has any]",
            ),
        )
    ):
        command = option(command)
    return command


def serve_on_ray(
    options: RayOptions,
    engine: EngineSettings,
    keys: Keys | None,
    limits: Limits,
    host: str,
    port: int,
) -> None:
    """Serve until a signal comes. Raises as `ray.deploying`."""
    from fusionrag_integrations.ray import deploying
    from fusionrag_integrations.ray.cluster import cluster
    from fusionrag_integrations.ray.settings import ServingSettings

    address = options.address or None
    if address is None:
        port = _free(host, port)
    elif port == 0:
        raise InvalidInputError("--port 0 can't be given with an address of --ray; give a number.")
    with terminable(), cluster(address):
        replicas = _replicas(options)
        deploying.listen(host, port)
        with err.status("Starting replicas"):
            deployed = deploying.deploy(ServingSettings(engine, keys, limits, replicas))
        with _signals() as told:
            out.print(f"The replicas answer at http://{host}:{port}/v1", markup=False)
            told.wait()
            if not deploying.end(deployed, hurry=told.again.is_set):
                err.print("Another command has replaced what this one deployed; it ends alone.")


def _free(host: str, port: int) -> int:
    """The port, which is free. Raises as `bound`."""
    from fusionrag_integrations.server import bound

    with bound(host, port) as listening:
        number: int = listening.getsockname()[1]
    return number


def _replicas(options: RayOptions) -> Replicas:
    """Raises `InvalidInputError` for more than this machine has, where Ray was started here."""
    from fusionrag_integrations.ray.cluster import resources
    from fusionrag_integrations.ray.settings import Replicas

    cpus, gpus = resources()
    least, most = options.counts or (1, 1)
    replicas = Replicas(
        least,
        most,
        1.0 if options.cpus is None else options.cpus,
        float(gpus > 0) if options.gpus is None else options.gpus,
    )
    if options.address == HERE:
        for name, has, takes in (("CPUs", cpus, replicas.cpus), ("GPUs", gpus, replicas.gpus)):
            if takes * least > has:
                raise InvalidInputError(
                    f"{least} replicas that take {takes:g} {name} each need {takes * least:g}; "
                    f"this machine has {has:g}. Give fewer --replicas or less "
                    f"--replica-{name.lower()}."
                )
    return replicas


class _Told:
    """Signals that have come. again: a second one."""

    def __init__(self) -> None:
        self._first = Event()
        self.again = Event()

    def take(self, sig: int, frame: FrameType | None) -> None:
        """As `signal.signal` calls it."""
        (self.again if self._first.is_set() else self._first).set()

    def wait(self) -> None:
        """Until the first one."""
        while not self._first.wait(1.0):  # in pieces, so that the signal's handler runs
            pass


@contextmanager
def _signals() -> Iterator[_Told]:
    told = _Told()
    before = {sig: signal.signal(sig, told.take) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
