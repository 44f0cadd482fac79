"""Ad-hoc chunks: texts kept from requests, which belong to no document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.store.catalog import changes
from fusionrag_integrations.store.catalog.database import Database


class AdHocRows:
    """Searches don't find ad-hoc chunks; prompts that hold their texts do."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def kv_keys(self) -> list[str]:
        """Keys of their KV, isolated and fused."""
        return self._database.column(
            """SELECT isolated_key FROM chunks WHERE captured
            UNION SELECT fused_key FROM chunks WHERE captured AND fused_key != ''"""
        )

    def add(self, record: ChunkRecord) -> None:
        """Keep the text of a request."""
        with self._database.transaction() as db:
            changes.put_document(db, record.chunk.document, "", [record], captured=True)

    def delete(self, chunk_ids: Sequence[str]) -> None:
        """Delete these ad-hoc chunks."""
        with self._database.transaction() as db:
            changes.clear_fused_with(db, chunk_ids)
            changes.delete_adhoc(db, "id", chunk_ids)
            changes.raise_revision(db, searchable=False)

    def delete_keys(self, isolated_keys: Iterable[str]) -> None:
        """Delete the ad-hoc chunks with these keys."""
        query = "SELECT id FROM chunks WHERE captured AND isolated_key IN ({})"
        self.delete([row[0] for row in self._database.rows_in(query, isolated_keys)])
