"""Whether a directory is a store, and whether its catalog can be trusted."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from fusionrag_integrations.errors import StoreError, StoreNotFoundError
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.layout import (
    ASIDE_SUFFIX,
    CATALOG_FILE,
    CORRECTIONS_DIRECTORY,
    DOCUMENTS_DIRECTORY,
    INDEX_DIRECTORY,
    KV_DIRECTORY,
)
from fusionrag_integrations.store.manifests import Manifests

_BESIDE_THE_CATALOG = (DOCUMENTS_DIRECTORY, INDEX_DIRECTORY, KV_DIRECTORY, CORRECTIONS_DIRECTORY)
_WITHOUT_DOCUMENTS = (
    f"can't be rebuilt without {DOCUMENTS_DIRECTORY}: put that back, or ingest into another "
    "directory."
)


def open_catalog(path: Path) -> Catalog:
    """Open the catalog of the store at a path.

    Raises `StoreNotFoundError` where there is no store, `StoreError` where only the catalog is
    missing, or is another store's or older than the documents, and as `Catalog.open` does.
    """
    notes = Manifests(path).notes
    noted = notes.revision()  # read before the catalog's, which may rise meanwhile
    try:
        catalog = Catalog.open(path / CATALOG_FILE)
    except StoreNotFoundError:
        check_nothing_lost(path)
        raise
    named = Counter([catalog.info.store_id, *notes.store_ids()])
    own = named.pop(catalog.info.store_id)
    if any(count >= own for count in named.values()):
        catalog.close()
        raise StoreError(
            f"The catalog of the store at {path} is another store's: store.json or "
            f"{DOCUMENTS_DIRECTORY} say so. Put this store's own back, or let `fusionrag repair` "
            "rebuild it from the documents."
        )
    of_this_store = noted is not None and noted.store_id == catalog.info.store_id
    if noted and of_this_store and catalog.revision < noted.revision:
        catalog.close()
        raise StoreError(
            f"The store at {path} has a catalog that is older than its documents: they have "
            f"changed since, as they do where {CATALOG_FILE} is put back from a copy. `fusionrag "
            "repair` rebuilds it from the documents."
        )
    return catalog


def check_nothing_lost(path: Path) -> None:
    """Raises `StoreError` where there are other parts of a store without its catalog."""
    names = [*_BESIDE_THE_CATALOG, *(f"{name}{ASIDE_SUFFIX}" for name in _BESIDE_THE_CATALOG)]
    names += sorted(found.name for found in path.glob(f"{CATALOG_FILE}.*"))
    left = [name for name in names if _holds_anything(path / name)]
    if left:
        what_to_do = (
            "`fusionrag repair` rebuilds it from the documents; a new store needs another "
            "directory."
            if _has_documents(path)
            else f"It {_WITHOUT_DOCUMENTS}"
        )
        raise StoreError(
            f"The store at {path} has lost its catalog: {CATALOG_FILE} is missing or empty beside "
            f"{', '.join(left)}. {what_to_do}"
        )


def check_documents(path: Path) -> None:
    """Raises `StoreError` where a store has no manifests, as where their disk isn't mounted."""
    if not _has_documents(path):
        raise StoreError(f"The catalog of the store at {path} {_WITHOUT_DOCUMENTS}")


def _has_documents(path: Path) -> bool:
    directory = path / DOCUMENTS_DIRECTORY
    return directory.is_dir() and not directory.is_symlink() and _holds_anything(directory)


def _holds_anything(path: Path) -> bool:
    """Whether there is anything but directories. Links count, even broken ones."""
    if path.is_symlink() or not path.is_dir():
        return os.path.lexists(path)
    try:
        return any(map(_holds_anything, path.iterdir()))
    except OSError:
        return True  # it may hold something
