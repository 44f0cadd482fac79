"""Replicas on Ray, which isn't started: its answers are played."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

from fusionrag_integrations.cli.serve_ray import RayOptions, _replicas, serve_on_ray
from fusionrag_integrations.ray import deploying
from fusionrag_integrations.ray.cluster import cluster
from fusionrag_integrations.ray.settings import EngineSettings, Replicas, ServingSettings
from fusionrag_integrations.server import Limits
from tests.provocations.world import Provoked, World

provoked = Provoked()
ENGINE = EngineSettings("model", "store")


def play(world: World, **modules: Any) -> None:
    """Have these names in modules of Ray."""
    for name, content in modules.items():
        module = ModuleType(name.replace("_", "."))
        vars(module).update(content)
        world.patch.setitem(sys.modules, module.__name__, module)


def failing(error: Exception) -> Any:
    def fail(*given: Any, **more: Any) -> Any:
        raise error

    return fail


@provoked.by("There is no Ray to connect to at ...: ...")
def no_cluster(world: World) -> None:
    play(
        world,
        ray={"init": failing(ConnectionError("nobody answers")), "shutdown": lambda: None},
    )
    with cluster("auto"):
        pass


@provoked.by("Ray serves at ..., port ... on this cluster already, not at ...")
def served_elsewhere(world: World) -> None:
    client = SimpleNamespace(http_config=SimpleNamespace(host="127.0.0.1", port=8000))
    serve = SimpleNamespace(start=lambda **given: None)
    play(
        world,
        ray={"serve": serve},
        ray_serve={},
        ray_serve_context={"_get_global_client": lambda: client},
    )
    deploying.listen("0.0.0.0", 8000)


@provoked.by("Ray couldn't serve ... from ...: ...")
def replicas_that_do_not_start(world: World) -> None:
    serve = SimpleNamespace(
        run=failing(RuntimeError("It failed to start")),
        status=lambda: SimpleNamespace(applications={}),
        delete=lambda name: None,
    )
    play(world, ray={"serve": serve})
    world.patch.setattr(deploying, "application", lambda *given: None)
    deploying.deploy(ServingSettings(ENGINE))


@provoked.by("... replicas that take ... each need ...; this machine has ....")
def too_many(world: World) -> object:
    world.patch.setattr("fusionrag_integrations.ray.cluster.resources", lambda: (2.0, 0.0))
    return _replicas(RayOptions("", (4, 4), 1.0, None))


provoked.each(
    {
        "... can only be given with --ray.": lambda w: RayOptions(None, (1, 2), None, None),
        "--port 0 can't be given with an address of --ray; give a number.": lambda w: serve_on_ray(
            RayOptions("10.0.0.1:6379", None, None, None), ENGINE, None, Limits(), "127.0.0.1", 0
        ),
        "Replicas are ... to ...; give at least 1, and ...": lambda w: Replicas(3, 2),
        "A replica's ... are ...; give 0 or more.": lambda w: Replicas(cpus=-1.0),
    }
)
