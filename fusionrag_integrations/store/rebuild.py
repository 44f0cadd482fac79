"""Rebuilds a store's catalog from its manifests."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.keys import fused_key
from fusionrag_integrations.errors import CatalogRowError, StoreError
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.catalog.store_row import last_revision, restore_info
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.layout import CATALOG_FILE
from fusionrag_integrations.store.manifests import Manifest, Manifests, aside_of
from fusionrag_integrations.store.manifests.notes import read_info
from fusionrag_integrations.store.opening import check_documents, open_catalog
from fusionrag_integrations.store.verify import checked_catalog
from fusionrag_integrations.support.atomic_files import remove_file


def restore_store_row(store: Path, manifests: Manifests) -> bool:
    """Restore the catalog's row about the store, if nothing else is damaged; returns whether."""
    try:
        open_catalog(store).close()
        return False
    except CatalogRowError:
        revision = _next_revision(store, manifests)
    except StoreError:
        return False
    path = store / CATALOG_FILE
    with suppress(StoreError):
        for info in manifests.notes.readable_infos():
            if restore_info(path, info, revision):
                manifests.notes.write_revision(revision, info.store_id)
                checked_catalog(store).close()
                return True
    return False


def rebuild_catalog(store: Path, manifests: Manifests) -> None:
    """Rebuild the catalog from all readable manifests. Raises `StoreError` where there are none."""
    check_documents(store)
    known: list[StoreInfo] = []
    with suppress(StoreError), Catalog.open(store / CATALOG_FILE) as catalog:
        known.append(catalog.info)
    info = manifests.info_of_most(known)
    for path in manifests.notes.info_paths():
        try:
            is_right = read_info(path) == info
        except StoreError:
            is_right = False
        if not is_right:
            remove_entry(path)
    manifests.notes.write_info(info)
    draft = store / f"{CATALOG_FILE}.new"
    remove_file(draft)
    with Catalog.create(draft, info, _next_revision(store, manifests)) as catalog:
        add_manifests(manifests.unknown([], info.record_signature), catalog)
        revision = catalog.revision
    # SQLite would apply the old file's journal to the new one.
    remove_file(store / f"{CATALOG_FILE}-journal")
    if os.path.lexists(store / CATALOG_FILE):
        put_aside(store / CATALOG_FILE)
    draft.replace(store / CATALOG_FILE)
    manifests.notes.write_revision(revision, info.store_id)


def add_manifests(manifests: Sequence[Manifest], catalog: Catalog) -> None:
    """Put documents into the catalog, then the links of fused KV between them."""
    for manifest in manifests:
        catalog.documents.replace(
            manifest.document, manifest.content_hash, manifest.records, manifest.vectors
        )
    for manifest in manifests:
        for record, neighbours in zip(manifest.records, manifest.neighbours, strict=True):
            if _is_valid(record, neighbours, catalog):
                catalog.kv.set_fused(record.chunk.id, record.fused_key, neighbours, record.trace)


def _is_valid(record: ChunkRecord, neighbours: tuple[str, ...], catalog: Catalog) -> bool:
    """Whether a record's fused key is that of its neighbours as they are now."""
    found = catalog.chunks.readable(neighbours)
    if not neighbours or len(found) < len(neighbours):
        return False
    keys = [found[neighbour].isolated_key for neighbour in neighbours]
    return record.fused_key == fused_key(record.isolated_key, keys)


def _next_revision(store: Path, manifests: Manifests) -> int:
    """A revision above that of any copy of the catalog, so that none is taken for the newest.

    Also above the clock's seconds, in case no revision is readable: no count of changes is as high.
    """
    noted = manifests.notes.revision()
    known = (noted.revision if noted else 0, last_revision(store / CATALOG_FILE))
    return max(*known, int(time.time())) + 1


def remove_entry(path: Path) -> bool:
    """Remove a file, link or empty directory; returns whether that was possible."""
    try:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            remove_file(path)
    except OSError:
        return False
    return True


def put_aside(path: Path) -> None:
    """Rename a damaged file or directory to *.damaged, replacing an earlier one."""
    aside = aside_of(path)
    if aside.is_dir():
        rmtree(aside)
    path.replace(aside)
