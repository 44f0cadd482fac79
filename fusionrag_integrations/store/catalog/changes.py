"""Writes that span documents, chunks, keys and vectors, each in the caller's transaction.

The rule that keeps stale content out: a fused key stands only while the chunk, its document and
every neighbour are as they were when the KV was made. Whatever changes one of them clears the key
in the same transaction.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Mapping, Sequence

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.store.catalog.rows import WRITTEN, packed, parameters, to_row


def put_document(
    db: sqlite3.Connection,
    document: DocumentKey,
    content_hash: str,
    records: Sequence[ChunkRecord],
    captured: bool = False,
) -> None:
    """Replace a document's chunks. captured: whether it is an ad-hoc chunk, and no document."""
    name = (captured, document.scope, document.id)
    of_document = "captured = ? AND scope = ? AND document_id = ?"
    rows = {record.chunk.id: to_row(record, captured) for record in records}
    keys = {record.chunk.id: record.isolated_key for record in records}
    query = f"SELECT id, isolated_key FROM chunks WHERE {of_document}"
    old = dict(db.execute(query, name).fetchall())
    clear_fused_with(db, [i for i, key in old.items() if keys.get(i) != key])
    db.execute(
        f"""DELETE FROM neighbours
        WHERE chunk_id IN (SELECT id FROM chunks WHERE {of_document})""",
        name,
    )
    db.executemany("DELETE FROM chunks WHERE id = ?", parameters(old.keys() - keys.keys()))
    db.execute(
        """INSERT INTO documents VALUES (?, ?, ?, ?)
        ON CONFLICT DO UPDATE SET content_hash = excluded.content_hash""",
        (*name, content_hash),
    )
    marks = ", ".join("?" * len(WRITTEN.split(",")))
    db.executemany(
        f"UPDATE chunks SET ({WRITTEN}, fused_key) = ({marks}, '') WHERE id = ?",
        [(*row, chunk_id) for chunk_id, row in rows.items() if chunk_id in old],
    )
    db.executemany(
        f"INSERT INTO chunks ({WRITTEN}) VALUES ({marks})",
        [row for chunk_id, row in rows.items() if chunk_id not in old],
    )
    if not captured:  # an ad-hoc chunk of a text that is ingested now would be ambiguous
        delete_adhoc(db, "isolated_key", keys.values())
    raise_revision(db, searchable=not captured)


def clear_fused_with(db: sqlite3.Connection, chunk_ids: Iterable[str]) -> None:
    """Clear every fused key that was made with one of these chunks as neighbour."""
    made_with = "(SELECT chunk_id FROM neighbours WHERE neighbour_id = ?)"
    for chunk_id in parameters(chunk_ids):
        db.execute(f"UPDATE chunks SET fused_key = '' WHERE id IN {made_with}", chunk_id)
        db.execute(f"DELETE FROM neighbours WHERE chunk_id IN {made_with}", chunk_id)


def delete_adhoc(db: sqlite3.Connection, column: str, values: Iterable[str]) -> None:
    """Delete the ad-hoc chunks that have one of these values in a column."""
    db.executemany(
        f"""DELETE FROM documents WHERE captured AND (scope, id) IN
        (SELECT scope, document_id FROM chunks WHERE captured AND {column} = ?)""",
        parameters(values),
    )


def put_vectors(db: sqlite3.Connection, vectors: Mapping[str, Sequence[float]]) -> None:
    """Write vectors by chunk id: float32, with zlib's checksum; lexical ones are mostly zeros."""
    rows = [(i, zlib.compress(packed("f", *vector), level=1)) for i, vector in vectors.items()]
    db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)


def raise_revision(db: sqlite3.Connection, searchable: bool) -> None:
    """searchable: whether what an index holds has changed, not only what is known."""
    db.execute("UPDATE store SET texts = texts + 1, revision = revision + ?", (searchable,))
