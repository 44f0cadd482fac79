"""Stores at URLs, and stores that were made anew."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fusionrag_integrations import FusionEngine, Store
from fusionrag_integrations.engine.reindex import reindex
from fusionrag_integrations.errors import StoreUnreachableError
from fusionrag_integrations.store.generations import collect_generations
from fusionrag_integrations.store.objects import fsspec_objects
from fusionrag_integrations.store.objects.directory import DirectoryObjects
from fusionrag_integrations.store.objects.fsspec_objects import FsspecObjects
from fusionrag_integrations.store.published import writer_lease
from fusionrag_integrations.store.published.version_log import VersionLog
from fusionrag_integrations.store.published.writer_lease import WriterLease
from fusionrag_integrations.support.beating import Beating
from tests.conftest import town
from tests.processes import in_child
from tests.provocations.world import Provoked, Seen, World

provoked = Provoked()


def shared(world: World, *documents: int) -> FusionEngine:
    """A store in a directory that machines share."""
    world.patch.setenv("FUSIONRAG_CACHE", str(world.tmp / "cache"))
    engine = world.open(url(world), chunk_tokens=48)
    engine.ingest([town(number) for number in documents])
    return engine


def url(world: World) -> str:
    return f"file://{world.tmp}/shared"


def objects(world: World) -> DirectoryObjects:
    return DirectoryObjects(url(world), world.tmp / "shared")


def refusing(world: World, *methods: str) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise StoreUnreachableError(f"{url(world)} is away.")

    for method in methods:
        world.patch.setattr(DirectoryObjects, method, refuse)


@provoked.by("The store ... can't be opened: .... Install what fsspec needs for it; ...")
def unknown_protocol(world: World) -> None:
    world.open("nosuch://bucket/store")


@provoked.by("The store ... names no directory of this machine: give file:///path/to/store.")
def another_machine(world: World) -> None:
    world.open("file://server/share/store")


@provoked.by("The store ... is no URL: two strokes follow the protocol, ...")
def one_stroke(world: World) -> None:
    world.open("s3:/bucket/store")


@provoked.by("... can't be used: ....")
def unreadable_directory(world: World) -> None:
    world.file("shared")
    objects(world).write("one", [b"x"])


@provoked.by("... can't be used (...; object ...).")
def refused(world: World) -> None:
    storage = FsspecObjects("memory://refused")

    def refuse(*given: object, **named: object) -> None:
        raise PermissionError("read-only key")

    world.patch.setattr(storage._fs, "cat_file", refuse)
    storage.read("newest")


@provoked.by("... can't be reached, and is tried again: ...")
def away_for_a_moment(world: World) -> list[Seen]:
    world.patch.setattr(fsspec_objects, "_FIRST_PAUSE", 0.001)
    storage = FsspecObjects("memory://moment")
    storage.write("one", [b"x"])
    failures = [ConnectionError("refused")]
    cat_file = storage._fs.cat_file

    def failing(*given: object, **named: object) -> object:
        if failures:
            raise failures.pop()
        return cat_file(*given, **named)

    world.patch.setattr(storage._fs, "cat_file", failing)
    storage.read("one")
    return world.logged()


@provoked.by("... can't be written: it replaces what is there where it is told to create, ...")
def not_exclusive(world: World) -> None:
    storage = FsspecObjects("memory://replaces")
    pipe_file = storage._fs.pipe_file
    world.patch.setattr(
        storage._fs, "pipe_file", lambda path, content, mode="": pipe_file(path, content)
    )
    storage.check_exclusive()


@provoked.by("The storage doesn't say when ... was written.")
def without_times(world: World) -> None:
    storage = FsspecObjects("memory://timeless")
    found = {"/timeless/kv/x": {"name": "/timeless/kv/x", "size": 1}}
    world.patch.setattr(storage._fs, "find", lambda path, detail: found)
    list(storage.entries("kv"))


@provoked.by("... has lost ..., of which its version consists. ...")
def lost_block(world: World) -> None:
    shared(world, 0).close()
    shutil.rmtree(world.tmp / "cache")
    shutil.rmtree(world.tmp / "shared" / "blocks")
    Store.open(url(world))


@provoked.by("... is damaged: ... has another content than its name says. ...")
def damaged_block(world: World) -> None:
    shared(world, 0).close()
    shutil.rmtree(world.tmp / "cache")
    for path in (world.tmp / "shared" / "blocks").glob("??/*"):
        path.write_bytes(b"other")
    Store.open(url(world))


@provoked.by("... is damaged: .... Put it back, or delete it; if it is the newest, ...")
def damaged_version(world: World) -> None:
    shared(world, 0)
    objects(world).write("versions/000000000002.json", [b"{}"])
    Store.open(url(world))


@provoked.by("There is a store at ... already; open it instead.")
def made_at_once(world: World) -> None:
    engine = shared(world, 0)
    Store.create(url(world), engine.store.catalog.info)


@provoked.by("... is damaged, and is fetched again: ...")
def damaged_working_copy(world: World) -> list[Seen]:
    engine = shared(world, 0)
    engine.close()
    (engine.store.path / "catalog.sqlite").unlink()
    Store.open(url(world)).close()
    return world.logged()


@provoked.by("... is missing: its versions were collected.")
def collected(world: World) -> None:
    VersionLog(objects(world)).read(3)


@provoked.by("Another writer has published version ... of ... meanwhile. ...")
def overtaken(world: World) -> None:
    shared(world, 0)
    version = VersionLog(objects(world)).newest()
    assert version is not None
    VersionLog(objects(world)).publish(replace(version, by="another"))


@provoked.by("... is changing the store at ...: it has the lease .... Wait for it to end.")
def leased(world: World) -> None:
    engine = shared(world, 0)
    with WriterLease(objects(world)):
        engine.ingest([town(1)])


@provoked.by("The lease to write to ... expired, since it couldn't be renewed in time, ...")
def expired(world: World) -> None:
    lease = WriterLease(objects(world))
    now = time.time()
    world.patch.setattr(time, "time", lambda: now + writer_lease.SECONDS + 1)
    with WriterLease(objects(world)):
        lease.check()


@provoked.by("The lease to write lasts until it expires: ...")
def left(world: World) -> list[Seen]:
    lease = WriterLease(objects(world))
    refusing(world, "existing", "entries", "write")
    lease.close()
    return world.logged()


@provoked.by("Not renewed: ...")
def not_renewed(world: World) -> list[Seen]:
    def refuse() -> None:
        raise StoreUnreachableError("it is away")

    with Beating("beating", 0.001, refuse):
        time.sleep(0.1)
    return world.logged()


@provoked.by("Version ... of ... is a store made anew, for .... This one, for ..., stays open. ...")
def made_for_another(world: World) -> None:
    reader = shared(world, 0)
    reindex(world.model_dir, store=url(world), kv_format="int8")
    reader.refresh()


@provoked.by("Unpublished changes of ... give way to version ...")
def given_way(world: World) -> list[Seen]:
    first = shared(world, 0)

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.ingest([town(1)], progress=interrupt)
    shared(world, 0, 1)
    first.refresh()
    return world.logged()


@provoked.by("... can't be used for a working copy of ...: .... Name another directory ...")
def no_cache(world: World) -> None:
    shared(world, 0).close()
    world.patch.setenv("FUSIONRAG_CACHE", str(world.file("file")))
    Store.open(url(world))


@provoked.by("... couldn't be reached a moment ago.")
def away(world: World) -> list[Seen]:
    engine = shared(world, 0)
    for key in list(engine.kv.keys()):
        engine.kv.delete(key)
    refusing(world, "read_ranges")
    for _ in range(2):
        engine.answer(f"{town(0).text}\n\nWhere is the fox?")
    return [(kind, said.partition(" isn't used: ")[2]) for kind, said in world.logged()]


@provoked.by("The working copy of ... is another process's, which was forked: ...")
def forked(world: World) -> list[Seen]:
    engine = shared(world, 0)
    kind, _, said = in_child(engine.refresh).partition(": ")
    return [(kind, said)]


@provoked.by("The catalog ... can't be replaced: ....")
def not_replaced(world: World) -> None:
    first, second = shared(world, 0), shared(world, 0, 1)
    assert second.store.path != first.store.path

    def refuse(*given: object) -> None:
        raise PermissionError("read-only")

    world.patch.setattr("fusionrag_integrations.store.catalog.database.move_file", refuse)
    first.refresh()


@provoked.by("The store at ... is already one of ... in ...: there is nothing to make anew. ...")
def nothing_to_do(world: World) -> None:
    reindex(world.model_dir, store=world.copy())


@provoked.by("The store at ... was made with ... salt. Give its own.")
def without_its_salt(world: World) -> None:
    reindex(world.model_dir, store=world.copy(), kv_format="int8", salt="pepper")


def moved(world: World) -> Path:
    store = world.copy()
    reindex(world.model_dir, store=store, kv_format="int8")
    return store


@provoked.by("The store at ... can't be moved: ....")
def not_moved(world: World) -> None:
    world.patch.setattr(os, "fsync", lambda _: None)
    store = world.copy()
    (store / "moved.json").mkdir()
    from fusionrag_integrations.store.generations import move_to

    move_to(store, "abc")


@provoked.by("... is damaged, which says where the store is: ...")
def damaged_note(world: World) -> None:
    store = moved(world)
    (store / "moved.json").write_text("{")
    Store.open(store)


@provoked.by("... says that the store is in ..., which isn't there.")
def lost_generation(world: World) -> None:
    store = moved(world)
    (store / "moved.json").write_text(json.dumps({"to": "elsewhere", "when": 0}))
    Store.open(store)


@provoked.by("... can't be deleted: ....")
def not_deleted(world: World) -> None:
    store = moved(world)

    def refuse(path: Path) -> None:
        raise PermissionError("read-only")

    world.patch.setattr(shutil, "rmtree", refuse)
    collect_generations(store, grace=0)


@provoked.by("--refresh is for a store at a URL; the directory ... is followed at once.")
def refreshed_directory(world: World) -> list[Seen]:
    return world.run("serve", "--store", world.store, "--refresh", 5)
