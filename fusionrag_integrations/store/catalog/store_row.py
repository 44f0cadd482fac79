"""The one row about the store itself: what it was made with, and how often it was changed.

It has a checksum. Where that doesn't match, the catalog isn't opened.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import astuple, fields
from pathlib import Path

from fusionrag_integrations.errors import CatalogRowError, StoreError
from fusionrag_integrations.store.catalog.database import Database, connect
from fusionrag_integrations.store.catalog.rows import checksum
from fusionrag_integrations.store.info import StoreInfo

_COLUMNS = ", ".join(field.name for field in fields(StoreInfo))
_SELECT_INFO = f"SELECT {_COLUMNS}, info_sum FROM store"


def read_info(database: Database) -> StoreInfo:
    """What the store was made with. Raises `CatalogRowError`."""
    rows = database.rows(_SELECT_INFO)
    if len(rows) != 1 or rows[0][-1] != checksum(*rows[0][:-1]):
        raise _damaged(database)
    return StoreInfo(*rows[0][:-1])


def read_count(database: Database, column: str) -> int:
    """How often something was changed: "revision" or "texts". Raises `CatalogRowError`."""
    counts = database.column(f"SELECT {column} FROM store")
    if len(counts) != 1 or not _is_count(counts[0]):
        raise _damaged(database)
    return int(counts[0])


def write_info(db: sqlite3.Connection, info: StoreInfo, revision: int) -> None:
    """Add the row to an empty table, with counts that go on from a revision."""
    values = (*astuple(info), checksum(*astuple(info)), revision, revision)
    columns = f"{_COLUMNS}, info_sum, revision, texts"
    db.execute(f"INSERT INTO store ({columns}) VALUES ({', '.join('?' * len(values))})", values)


def restore_info(path: Path, info: StoreInfo, revision: int) -> bool:
    """Write a catalog's row again, with counts that continue from a revision.

    Returns False and writes nothing where it was another row: then neither its checksum nor its
    values are those of `info`. Raises `StoreError`.
    """
    with connect(path, "rw") as opened, closing(opened) as db, db:
        db.execute("BEGIN IMMEDIATE")
        values = astuple(info)
        rows = db.execute(_SELECT_INFO).fetchall()
        if not rows or any(r[:-1] != values and r[-1] != checksum(*values) for r in rows):
            return False
        db.execute("DELETE FROM store")
        write_info(db, info, revision)
    return True


def last_revision(path: Path) -> int:
    """The revision that a catalog had reached, however damaged it is; 0 where it can't be read."""
    try:
        with connect(path, "rw") as opened, closing(opened) as db:
            counts = [row[0] for row in db.execute("SELECT revision FROM store")]
    except StoreError:
        return 0
    return max(filter(_is_count, counts), default=0)


def set_counts(path: Path, revision: int, texts: int) -> None:
    """Set how often a catalog that nobody has open was changed. Raises `StoreError`."""
    with connect(path, "rw") as opened, closing(opened) as db, db:
        db.execute("UPDATE store SET revision = ?, texts = ?", (revision, texts))


def _is_count(value: object) -> bool:
    """Whether it can be counted on from; SQLite makes a float of an integer beyond 64 bits."""
    return isinstance(value, int) and 0 <= value < 1 << 62


def _damaged(database: Database) -> CatalogRowError:
    return CatalogRowError(
        f"What {database.path} says of the store itself is damaged. `fusionrag repair` takes it "
        "from store.json."
    )
