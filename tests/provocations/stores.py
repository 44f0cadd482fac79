"""Opening a store."""

from __future__ import annotations

import sqlite3
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch

from fusionrag_integrations import FusionEngine, Store
from fusionrag_integrations.documents.embedding import LexicalEmbedder
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.layout import CATALOG_FILE
from fusionrag_integrations.store.manifests import Manifests
from tests.processes import in_child
from tests.provocations.world import Provoked, Seen, World

provoked = Provoked()


class OtherEmbedding(LexicalEmbedder):
    """Under the built-in one's name, another."""

    def embed_query(self, text: str) -> list[float]:
        return super().embed_query(text[::-1])


class LongerEmbedding(LexicalEmbedder):
    """Which makes longer vectors of some texts."""

    def embed_query(self, text: str) -> list[float]:
        vector = super().embed_query(text)
        return [*vector, 1.0] if "fox" in text else vector


def changed(store: Path, statement: str) -> Path:
    """The store, with its catalog changed behind its back."""
    db = sqlite3.connect(store / CATALOG_FILE)
    with db:
        db.execute(statement)
    db.close()
    return store


@provoked.by("There is no store at ...")
def empty_catalog(world: World) -> None:
    world.file(CATALOG_FILE)
    Store.open(world.tmp)


@provoked.by(
    "The store at ... has lost its catalog: catalog.sqlite is missing or empty beside ...",
)
def lost_catalog(world: World) -> None:
    store = world.copy()
    (store / CATALOG_FILE).unlink()
    world.open(store)


@provoked.by("The store at ... has a catalog that is older than its documents: ...")
def older_catalog(world: World) -> None:
    store = changed(world.copy(), "UPDATE store SET revision = 0")
    world.open(store)


@provoked.by("The catalog of the store at ... is another store's: ...")
def another_stores_catalog(world: World) -> None:
    store = world.copy()
    Store.create(world.tmp / "another", world.engine.store.catalog.info).close()
    (world.tmp / "another" / CATALOG_FILE).replace(store / CATALOG_FILE)
    world.open(store)


@provoked.by("What ... says of the store itself is damaged. ...")
def damaged_store_row(world: World) -> None:
    world.open(changed(world.copy(), "UPDATE store SET signature = 'x'"))


@provoked.by("The catalog of the store at ... can't be rebuilt without documents: ...")
def no_documents(world: World) -> list[Seen]:
    store = world.copy()
    (store / CATALOG_FILE).unlink()
    (store / "documents").rename(world.tmp / "elsewhere")
    return world.run("repair", "--store", store)


@provoked.by("No document in ... is of the store that ... tells of: ...")
def another_models_files(world: World) -> list[Seen]:
    store = world.copy()
    (store / CATALOG_FILE).unlink()
    manifests = Manifests(store)
    for path in manifests.notes.info_paths():
        path.unlink()
    manifests.notes.write_info(replace(world.engine.store.catalog.info, signature="another"))
    return world.run("repair", "--store", store)


@provoked.by("... is a symbolic link, which is not followed. ...")
def linked_catalog(world: World) -> None:
    store = world.copy()
    (store / CATALOG_FILE).rename(world.tmp / "elsewhere")
    (store / CATALOG_FILE).symlink_to(world.tmp / "elsewhere")
    world.open(store)


@provoked.by(
    "The store at ... was made by ... (signature ...), not by ... (signature ...). What ..."
)
def another_model(world: World) -> None:
    hf = deepcopy(world.engine.model.hf)
    with torch.no_grad():
        hf.lm_head.weight[0, 0] += 1.0
    model = CausalModel(hf, world.engine.model.tokenizer, "another")
    FusionEngine.open(model, world.store)


@provoked.by("The store at ... was indexed with the embedding ..., which makes other vectors ...")
def another_embedding(world: World) -> None:
    Store.open(world.store, OtherEmbedding())


@provoked.by("... is a database, but not the catalog of a store.")
def another_database(world: World) -> None:
    Store.open(changed(world.tmp, "CREATE TABLE notes (text)"))


@provoked.by("There is a database at ... already; open it instead.")
def made_twice(world: World) -> None:
    """What the slower of two processes meets that make the same store."""
    store = world.copy()
    Store.create(store, world.engine.store.catalog.info)


@provoked.by("The store at ... was closed here; open it again to use it.")
def closed(world: World) -> None:
    engine = world.open(world.store)
    engine.close()
    engine.answer("Where is the fox?")


@provoked.by(
    "Chroma can't be used in this process: it was forked from one that had searched or changed an "
    "index. ...",
)
def searched_before_the_fork(world: World) -> list[Seen]:
    world.engine.store.search("Where is the fox?")
    return told(in_child(lambda: world.engine.ingest([])))


@provoked.by("This answer was begun before its process was forked, ...")
def begun_before_the_fork(world: World) -> list[Seen]:
    stream = world.engine.stream("Where is the fox?")
    next(stream)
    return told(in_child(lambda: next(stream)))


@provoked.by("... was loaded on ... before this process was forked, and CUDA can't be used ...")
def forked_with_a_gpu(world: World) -> list[Seen]:
    engine = world.open(world.store)
    world.patch.setattr(engine.model, "device", torch.device("cuda"))
    return told(in_child(lambda: engine.answer("Where is the fox?")))


def told(said: str) -> list[Seen]:
    """What a child said of an error."""
    kind, _, message = said.partition(": ")
    return [(kind, message)]


def without_kv(world: World) -> FusionEngine:
    return FusionEngine.from_pretrained(world.model_dir, store=world.tmp / "without", kv="none")


def older_format(world: World) -> None:
    info = replace(world.engine.store.catalog.info, format_version=1)
    Store.create(world.tmp / "older", info).close()
    world.open(world.tmp / "older")


provoked.pairs += [
    ("There is no store at ...", lambda w: Store.open(w.tmp)),
    ("There is no store at ...", lambda w: w.run("verify", "--store", w.tmp / "none")),
    ("The store at ... was made with ... salt. ...", lambda w: w.open(w.store, salt="secret")),
]
provoked.each(
    {
        "... has schema version ...; this release reads version ...": lambda w: Store.open(
            changed(w.copy(), "PRAGMA user_version = 99")
        ),
        "The store at ... has format ...; this version reads format ...": older_format,
        "The store at ... was made by another embedding: ...": lambda w: Store.open(
            w.store, LongerEmbedding()
        ).search("Where is the fox?"),
        "The store at ... has chunks of up to ... tokens; chunk_tokens=... needs a new store.": (
            lambda w: w.open(w.store, chunk_tokens=64)
        ),
        "The store at ... keeps KV as ..., not ...; fusionrag reindex makes it anew ...": (
            lambda w: w.open(w.store, kv_format="int8")
        ),
        "The store at ... was made ... KV..., and kv is ...": lambda w: (
            FusionEngine.from_pretrained(w.model_dir, store=w.store, kv="none")
        ),
        "kv_format is ..., and kv='none' keeps no KV; leave one of them out.": lambda w: (
            FusionEngine.from_pretrained(
                w.model_dir, store=w.tmp / "without", kv="none", kv_format="int8"
            )
        ),
        "The store at ... keeps no KV (kv='none'): ...": lambda w: without_kv(w).check(),
        "kv is ..., and the store at ... keeps no KV. ...": lambda w: w.asked(
            without_kv(w), kv="fused"
        ),
        "Can't make a store at ...: ...": lambda w: w.open(w.file("notes.txt") / "store"),
        "Unknown kv_format ...; choose ...": lambda w: w.open(kv_format="int2"),
        "chunk_tokens is ...; it must be at least ...": lambda w: w.open(chunk_tokens=1),
        "salt is ...; give a string.": lambda w: w.open(salt=5),
        "A budget is ... bytes; give 0 or more, or None.": lambda w: w.open(
            w.store, budgets=Budgets(host=-1)
        ),
        "... is not an embedding: give an object with ...": lambda w: w.open(embedding="bge-small"),
    }
)
