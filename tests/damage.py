"""Damage to the files of a store, and what must come of it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.layout import CATALOG_FILE
from fusionrag_integrations.store.manifests import Manifests
from fusionrag_integrations.store.vector_index.check import faults

Damage = Callable[[Path, random.Random], None]


def flipped(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)


def scribbled(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    start = chance.randrange(len(content) + 1)
    content[start : start + 4096] = chance.randbytes(len(content[start : start + 4096]))
    file.write_bytes(content)


def cut(file: Path, chance: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path, chance: random.Random) -> None:
    file.write_bytes(b"")


def deleted(file: Path, chance: random.Random) -> None:
    file.unlink()


def a_directory(file: Path, chance: random.Random) -> None:
    file.unlink()
    file.mkdir()


def a_fifo(file: Path, chance: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


def a_link(file: Path, chance: random.Random) -> None:
    """To the file itself, which stands elsewhere now."""
    store = next(path for path in file.parents if (path / CATALOG_FILE).exists())
    elsewhere = store.parent / f"elsewhere-{file.parent.name}-{file.name}"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


CONTENT: tuple[Damage, ...] = (flipped, scribbled, cut, emptied, deleted)
KINDS: tuple[Damage, ...] = (*CONTENT, a_directory, a_fifo, a_link)


def said(catalog: Catalog) -> tuple[StoreInfo, list[object]]:
    """All that is read from a catalog, as those who use it read it."""
    ids = catalog.chunks.all_ids()
    neighbours = [catalog.kv.neighbours(i) for i in ids]
    return catalog.info, [catalog.documents.all(), catalog.chunks.records(ids), neighbours]


def kept(store: Path) -> tuple[object, ...]:
    """What a store keeps, but for its id: what its catalog says, its KV, its documents' files."""
    with Catalog.open(store / CATALOG_FILE) as catalog:
        info, rows = said(catalog)
    infos = [replace(found, store_id="") for found in (info, Manifests(store).notes.info())]
    kv = {file.name: file.read_bytes() for file in store.glob("kv/??/*")}
    documents = {file.name: file.read_bytes() for file in store.glob("documents/??/*.json")}
    return infos, rows, kv, documents


def index_checked_here(catalog: Catalog, index: Path) -> list[str]:
    """No graph is damaged here, so that the index needs no process of its own, which takes long."""
    return list(faults(catalog, index))


def copied(made: Path, target: Path) -> Path:
    """A copy of a store, in the place of what is there."""
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(made, target)
