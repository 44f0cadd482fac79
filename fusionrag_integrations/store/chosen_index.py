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
    path: Path, catalog: Catalog, elsewhere: IndexElsewhere | None
) -> Iterator[VectorIndex]:
    """The index of the store at a path, until the block ends; a caller's own stays open.

    Raises `StoreError` where none is given and that in the directory is missing.
    """
    if elsewhere is not None and not elsewhere.is_ours:
        yield elsewhere.index
        return
    with closing(_in_directory(path, catalog) if elsewhere is None else elsewhere.index) as index:
        yield index


def _in_directory(path: Path, catalog: Catalog) -> ChromaIndex:
    notes = Manifests(path).notes
    if place := notes.index_place():
        raise StoreError(
            f"The index of the store at {path} isn't in its directory: it is {place}. Open the "
            f"store with index= as before. To have the index in the directory, delete "
            f"{notes.index_path} and run `fusionrag repair`, which needs no model."
        )
    directory = path / INDEX_DIRECTORY
    database = directory / DATABASE_FILE
    if catalog.counts().chunks and not (database.exists() and database.stat().st_size):
        raise index_lost_chunks(path, catalog)
    return ChromaIndex(directory)
