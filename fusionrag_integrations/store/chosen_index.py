"""The index in a store's directory, or the one that a caller gave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.layout import INDEX_DIRECTORY
from fusionrag_integrations.store.manifests import Manifests
from fusionrag_integrations.store.search import index_lost_chunks
from fusionrag_integrations.store.vector_index.base import VectorIndex
from fusionrag_integrations.store.vector_index.chroma import DATABASE_FILE, ChromaIndex
from fusionrag_integrations.store.vector_index.given import IndexElsewhere


@contextmanager
def opened_index(
    path: Path, catalog: Catalog, elsewhere: IndexElsewhere | None, fill: bool
) -> Iterator[VectorIndex]:
    """The index of the store at a path, until the block ends; a caller's own stays open.

    fill: whether it is filled from the catalog. Raises `StoreError` where it isn't, none is given
    and that in the directory is missing.
    """
    if elsewhere is not None and not elsewhere.is_ours:
        yield elsewhere.index
        return
    with closing(
        _in_directory(path, catalog, fill) if elsewhere is None else elsewhere.index
    ) as index:
        yield index


def _in_directory(path: Path, catalog: Catalog, fill: bool) -> ChromaIndex:
    notes = Manifests(path).notes
    if place := notes.index_place():
        raise StoreError(
            f"The index of the store at {path} isn't in its directory: it is {place}. Open the "
            f"store with index= as before. To have the index in the directory, delete "
            f"{notes.index_path} and run `fusionrag repair`, which needs no model."
        )
    directory = path / INDEX_DIRECTORY
    database = directory / DATABASE_FILE
    is_there = database.exists() and database.stat().st_size
    if not fill and catalog.counts().chunks and not is_there:
        raise index_lost_chunks(path, catalog)
    return ChromaIndex(directory)
