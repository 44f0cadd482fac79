"""Ingest on Ray."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.documents.embedding import LexicalEmbedder
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.ingest.work import ChangedDocument, ChunkTokens
from fusionrag_integrations.ray.indexing import Workers, index_on_ray
from fusionrag_integrations.ray.indexing.connecting import connected
from fusionrag_integrations.ray.indexing.ledger import Ledger
from fusionrag_integrations.ray.indexing.model_kv import KVPlace, ModelPlace
from fusionrag_integrations.ray.indexing.workers import KVWorker, TextWorker, Worker
from tests.conftest import town
from tests.provocations.world import Provoked, Seen, World

provoked = Provoked()


class RayError(Exception):
    """As Ray's own are."""


def fake_ray(world: World, **given: Any) -> None:
    """As if this package's extra were installed, on a machine of two CPUs."""

    def nothing(*_: object, **__: object) -> None:
        pass

    found = {
        "init": nothing,
        "shutdown": nothing,
        "is_initialized": lambda: False,
        "cluster_resources": lambda: {"CPU": 2.0},
        "data": SimpleNamespace(),
        "exceptions": SimpleNamespace(RayError=RayError),
    }
    module = SimpleNamespace(**found | given)
    world.patch.setitem(sys.modules, "ray", module)
    world.patch.setitem(sys.modules, "ray.data", module.data)
    world.patch.setattr(
        "fusionrag_integrations.ray.indexing.connecting.find_spec", lambda name: object()
    )


@provoked.by("Ingest on Ray needs ...: install the extra, ...")
def no_extra(world: World) -> None:
    world.patch.setattr(
        "fusionrag_integrations.ray.indexing.connecting.find_spec", lambda name: None
    )
    index_on_ray([town(0)], world.model_dir, world.tmp / "new", workers=Workers())


@provoked.by("... names a Ray client, over which datasets don't run. ...")
def client(world: World) -> None:
    fake_ray(world)
    with connected("ray://head:10001", Workers()):
        pass


@provoked.by("There is no Ray to connect to at ...: ...")
def nobody_there(world: World) -> None:
    def refused(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    fake_ray(world, init=refused)
    with connected("auto", Workers()):
        pass


@provoked.by("There is no room here for ... workers with ...")
def no_room(world: World) -> None:
    fake_ray(world)
    with connected(None, Workers(count=3)):
        pass


@provoked.by("The cluster has ... CPUs and ... GPUs now, less than ... need: it waits ...")
def no_room_yet(world: World) -> list[Seen]:
    fake_ray(world)
    world.log.set_level(logging.WARNING, "fusionrag_integrations")
    with connected("auto", Workers(gpus=1)):
        return world.logged()


@provoked.by("Ray gave up: ... What was stored is kept: run this again to go on. ...")
def given_up(world: World) -> None:
    fake_ray(world)
    with connected("auto", Workers()):
        raise RayError("The actor died unexpectedly before finishing this task")


@provoked.by("... workers with ... CPUs and ... GPUs each can't work; ...")
def no_workers(world: World) -> None:
    Workers(count=0)


@provoked.by("A worker's price is ... an hour; give 0 or more.")
def negative_price(world: World) -> None:
    Workers(price_per_hour=-1)


def told_by(worker: Worker, task: object) -> None:
    """What a worker says of its first batch is raised by whoever waits for it."""
    batch = np.empty(1, dtype=object)
    batch[0] = task
    (error,) = worker({"task": batch})["result"]
    raise error


def told_by_model(world: World, **place: Any) -> None:
    info = world.engine.store.catalog.info
    given = {"store": world.store, "info": info, "workers": 1} | place
    worker = KVWorker(
        Ledger(), ModelPlace(world.model_dir, threads=1), KVPlace(**given), isolated=0
    )
    told_by(worker, ChunkTokens("ab", (1,)))


@provoked.by("On ..., the embedding ... makes other vectors of the same texts than ...")
def other_embedding(world: World) -> None:
    class Other(LexicalEmbedder):
        def embed_query(self, text: str) -> list[float]:
            return super().embed_query(text)[::-1]

    facts = ModelFacts.of(world.engine.model)
    worker = TextWorker(Ledger(), facts, world.engine.store.catalog.info, Other)
    told_by(worker, ChangedDocument(town(0), "hash"))


@provoked.by("On ..., ... is another model (signature ...) than the one that the store ...")
def other_model(world: World) -> None:
    told_by_model(world, info=replace(world.engine.store.catalog.info, signature="other"))


@provoked.by("The store's directory ... isn't on ..., where a worker runs. ...")
def not_shared(world: World) -> None:
    told_by_model(world, store=world.tmp / "elsewhere")


@provoked.by("The store at ... keeps no KV, so that its documents need no workers. ...")
def no_kv(world: World) -> None:
    FusionEngine.from_pretrained(world.model_dir, store=world.tmp / "plain", kv="none").close()
    index_on_ray([town(0)], world.model_dir, world.tmp / "plain", workers=Workers())


def index(world: World, *more: str) -> list[Seen]:
    file = world.file("town.txt", town(0).text)
    return world.run("index", file, "--store", world.tmp / "new", *more)


@provoked.by("... is for workers on Ray; give --ray, too, or leave it out.")
def without_ray(world: World) -> list[Seen]:
    return index(world, "--workers", "2")


@provoked.by("--kv none computes no KV, so it needs no --ray; leave one out.")
def kv_none(world: World) -> list[Seen]:
    return index(world, "--kv", "none", "--ray", "auto")


@provoked.by("Invalid value for '--ray': ... is no address; give host:port, 'auto', ...")
def no_address(world: World) -> list[Seen]:
    return index(world, "--ray", "docs")
