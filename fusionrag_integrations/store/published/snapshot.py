"""The files of a working copy as they are published, without what belongs to this machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from fusionrag_integrations.store.catalog.database import named_errors
from fusionrag_integrations.store.layout import (
    CALIBRATION_FILE,
    CATALOG_FILE,
    CORRECTIONS_DIRECTORY,
    DRAFTS_DIRECTORY,
    INDEX_DIRECTORY,
)
from fusionrag_integrations.store.vector_index.chroma import DATABASE_FILE
from fusionrag_integrations.support.atomic_files import make_directory

_DATABASES = (CATALOG_FILE, f"{INDEX_DIRECTORY}/{DATABASE_FILE}")


@contextmanager
def snapshot(store: Path, drafts: Path) -> Iterator[dict[str, Path]]:
    """The files of a version, by their names in a store's directory.

    The caller holds the store's lock, so that files don't change. Databases are copied to `drafts`
    meanwhile. Ad-hoc chunks, which are texts of requests, are removed from the copy, and their
    bytes overwritten. Raises `StoreError` for a damaged catalog.
    """
    make_directory(drafts)
    found = {name: store / name for name in _names(store)}
    copies: list[Path] = []
    try:
        for name in _DATABASES:
            if name in found:
                copy = drafts / Path(name).name
                copies.append(copy)
                copy_database(found[name], copy)
                if name == CATALOG_FILE:
                    _forget_adhoc(copy)
                found[name] = copy
        yield found
    finally:
        for copy in copies:
            copy.unlink(missing_ok=True)


def published_names(store: Path) -> list[str]:
    """The names of the files in a store's directory that are part of a version, ascending."""
    return _names(store)


def _names(store: Path) -> list[str]:
    paths = [store / CATALOG_FILE, store / CALIBRATION_FILE]
    for directory in (CORRECTIONS_DIRECTORY, INDEX_DIRECTORY):
        paths += (store / directory).rglob("*")
    names = (path.relative_to(store).as_posix() for path in paths if path.is_file())
    of_sqlite = ("-journal", "-wal", "-shm")  # what a copy of the database has in itself
    return sorted(
        n for n in names if DRAFTS_DIRECTORY not in n.split("/") and not n.endswith(of_sqlite)
    )


def copy_database(path: Path, copy: Path) -> None:
    """Page by page, so that unchanged blocks stay the same, with what is only in its journal."""
    copy.unlink(missing_ok=True)
    with (
        named_errors(path),
        closing(sqlite3.connect(path)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)


def _forget_adhoc(catalog: Path) -> None:
    with named_errors(catalog), closing(sqlite3.connect(catalog)) as db, db:
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA foreign_keys = ON")
        of_adhoc = "SELECT id FROM chunks WHERE captured"
        db.execute(f"DELETE FROM neighbours WHERE chunk_id IN ({of_adhoc})")
        db.execute(
            """DELETE FROM traces WHERE traced_key IN
            (SELECT traced_key FROM chunks WHERE captured) AND traced_key NOT IN
            (SELECT traced_key FROM chunks WHERE NOT captured)"""
        )
        db.execute("DELETE FROM documents WHERE captured")
