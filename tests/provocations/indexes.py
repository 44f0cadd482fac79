"""Chroma by a client or a collection that a caller gave."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import chromadb
import httpx

from fusionrag_integrations import FusionEngine, Store
from fusionrag_integrations.store.verify import find_damage
from tests.conftest import town
from tests.processes import in_child
from tests.provocations.stores import told
from tests.provocations.world import Provoked, Seen, World

provoked = Provoked()

GET = "chromadb.api.rust.RustBindingsAPI._get"


def filled(world: World, index: Any) -> FusionEngine:
    """A store of one town, whose index is given."""
    engine = world.open(index=index)
    engine.ingest([town(0)])
    return engine


def collection(**space: Any) -> Any:
    return chromadb.EphemeralClient().create_collection(uuid4().hex, **space)


def raising(world: World, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    world.patch.setattr(GET, fail)


def filtered(engine: FusionEngine) -> None:
    engine.store.search("Where is the fox?", where={"title": "Town 0"})


@provoked.by("The index of the store at ... isn't in its directory: ...")
def opened_without_it(world: World) -> None:
    filled(world, chromadb.EphemeralClient()).close()
    Store.open(world.tmp / "new")


@provoked.by("The index of the store at ... isn't checked: it is ...")
def verified(world: World) -> list[Seen]:
    filled(world, chromadb.EphemeralClient()).close()
    assert list(find_damage(world.tmp / "new")) == []
    return world.logged()


@provoked.by("index is ..., which has no ...; give a client of chromadb ...")
def no_index(world: World) -> None:
    world.open(index="http://localhost:8000")


@provoked.by("The collection ... compares vectors by ...; give one whose space is ...")
def unknown_space(world: World) -> None:
    given = collection()
    other = {"hnsw": {"space": "hamming"}}
    world.patch.setattr("chromadb.Collection.configuration_json", other)
    world.open(index=given)


@provoked.by("An embedding of zeros can't be kept in a collection that compares vectors by l2, ...")
def zeros(world: World) -> None:
    given = collection()
    chunk = world.engine.store.search("fox", 1)[0].chunk
    with Store.create(world.tmp / "new", world.engine.store.catalog.info, index=given) as store:
        store.index.add([chunk], [[0.0, 0.0]])


@provoked.by("The collection ... holds vectors of another length than those of the store at ...")
def another_length(world: World) -> None:
    given = collection()
    given.add(ids=["theirs"], embeddings=[[1.0, 0.0]], documents=["their text"])
    filled(world, given)


@provoked.by("The Chroma server at ... can't be reached: ...")
def unreachable(world: World) -> None:
    engine = filled(world, chromadb.EphemeralClient())
    request = httpx.Request("POST", "http://chroma.example:8000/api/v2")
    raising(world, httpx.ConnectError("Connection refused", request=request))
    filtered(engine)


@provoked.by("The Chroma collection ... is gone: ...")
def deleted(world: World) -> None:
    given = collection()
    engine = filled(world, given)
    chromadb.EphemeralClient().delete_collection(given.name)
    filtered(engine)


@provoked.by("The Chroma collection ... can't be used: ...")
def refusing(world: World) -> None:
    engine = filled(world, chromadb.EphemeralClient())
    raising(world, Exception("<html>502 Bad Gateway</html>"))
    filtered(engine)


@provoked.by(
    "The Chroma client of the store at ... can't be used in this process, which was forked ..."
)
def forked(world: World) -> list[Seen]:
    engine = filled(world, chromadb.EphemeralClient())
    return told(in_child(lambda: filtered(engine)))
