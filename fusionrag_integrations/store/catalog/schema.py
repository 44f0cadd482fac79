"""The catalog's tables, and how a file is recognised as a catalog."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from fusionrag_integrations.errors import StoreError, StoreMismatchError, StoreNotFoundError

SCHEMA_VERSION = 7

_APPLICATION_ID = 0x46524147  # "FRAG": distinguishes catalogs from other SQLite databases
_TABLES = (
    """CREATE TABLE store (
        format_version INTEGER NOT NULL, signature TEXT NOT NULL, model_source TEXT NOT NULL,
        embedding TEXT NOT NULL, chunk_tokens INTEGER NOT NULL, kv_format TEXT NOT NULL,
        salt_id TEXT NOT NULL, probes TEXT NOT NULL, store_id TEXT NOT NULL, kv TEXT NOT NULL,
        model_parts TEXT NOT NULL, info_sum BLOB NOT NULL, revision INTEGER NOT NULL,
        texts INTEGER NOT NULL)""",
    """CREATE TABLE documents (
        captured INTEGER NOT NULL, scope TEXT NOT NULL, id TEXT NOT NULL,
        content_hash TEXT NOT NULL, PRIMARY KEY (captured, scope, id)) WITHOUT ROWID""",
    """CREATE TABLE chunks (
        id TEXT PRIMARY KEY, captured INTEGER NOT NULL, scope TEXT NOT NULL,
        document_id TEXT NOT NULL, position INTEGER NOT NULL, text TEXT NOT NULL,
        title TEXT NOT NULL, metadata TEXT NOT NULL, content_sum BLOB NOT NULL,
        token_ids BLOB NOT NULL, offsets BLOB NOT NULL, isolated_key TEXT NOT NULL,
        tokens_sum BLOB NOT NULL, text_hash BLOB NOT NULL, fused_key TEXT NOT NULL DEFAULT '',
        fused_sum BLOB, traced_key TEXT NOT NULL DEFAULT '',
        FOREIGN KEY (captured, scope, document_id)
        REFERENCES documents (captured, scope, id) ON DELETE CASCADE)""",
    """CREATE TABLE traces (
        traced_key TEXT PRIMARY KEY, trace BLOB NOT NULL, traced_with TEXT NOT NULL,
        trace_sum BLOB NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX chunks_in_order ON chunks (captured, scope, document_id, position)",
    "CREATE INDEX chunks_by_text ON chunks (text_hash)",
    "CREATE INDEX chunks_by_key ON chunks (isolated_key)",
    "CREATE INDEX chunks_by_fused_key ON chunks (fused_key)",
    "CREATE INDEX chunks_by_trace ON chunks (traced_key)",
    """CREATE TABLE neighbours (
        chunk_id TEXT NOT NULL REFERENCES chunks (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        neighbour_id TEXT NOT NULL REFERENCES chunks (id),
        PRIMARY KEY (chunk_id, position)) WITHOUT ROWID""",
    "CREATE INDEX made_with ON neighbours (neighbour_id)",
    """CREATE TABLE vectors (
        chunk_id TEXT PRIMARY KEY REFERENCES chunks (id) ON DELETE CASCADE,
        vector BLOB NOT NULL) WITHOUT ROWID""",
)


def create_tables(db: sqlite3.Connection) -> None:
    """Make a database a catalog, in an open transaction."""
    for statement in _TABLES:
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def check_empty(db: sqlite3.Connection, path: Path) -> None:
    """Raises `StoreError` for a database that has content already."""
    if _kind(db) != (0, 0, 0):
        raise StoreError(f"There is a database at {path} already; open it instead.")


def check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Raises `StoreNotFoundError`, `StoreMismatchError` or `StoreError`, as `Catalog.open`."""
    tables, application_id, version = _kind(db)
    if tables == application_id == version == 0:
        raise StoreNotFoundError(f"There is no store at {path.parent}: {path} is empty.")
    if application_id != _APPLICATION_ID:
        raise StoreError(f"{path} is a database, but not the catalog of a store.")
    if version != SCHEMA_VERSION:
        raise StoreMismatchError(
            f"{path} has schema version {version}; this release reads version "
            f"{SCHEMA_VERSION}. Make a new store and ingest the documents into it."
        )


def _kind(db: sqlite3.Connection) -> tuple[int, int, int]:
    """Number of tables, application id and schema version; all 0 in an empty file."""
    queries = "SELECT count(*) FROM sqlite_master", "PRAGMA application_id", "PRAGMA user_version"
    tables, application_id, version = (db.execute(query).fetchone()[0] for query in queries)
    return tables, application_id, version
