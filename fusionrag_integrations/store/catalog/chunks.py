"""The chunks of a catalog: their texts, tokens and keys."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import CatalogRowError
from fusionrag_integrations.store.catalog.database import Database
from fusionrag_integrations.store.catalog.rows import IN_ORDER, RECORDS, text_hash, to_record

logger = logging.getLogger(__name__)


class Chunks:
    """What reads records raises `CatalogRowError` for one whose row isn't what was written."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ids(self, documents: Iterable[DocumentKey] | None = None) -> list[str]:
        """Ids of the chunks of these documents, or of all; each document's in its order."""
        if documents is None:
            return self._database.column(f"SELECT id FROM chunks WHERE NOT captured {IN_ORDER}")
        query = """SELECT id FROM chunks
            WHERE captured = 0 AND scope = ? AND document_id = ? ORDER BY position"""
        keys = dict.fromkeys(documents)
        return [i for key in keys for i in self._database.column(query, (key.scope, key.id))]

    def all_ids(self) -> list[str]:
        """Like `ids` of all documents, with ad-hoc chunks."""
        return self._database.column(f"SELECT id FROM chunks {IN_ORDER}")

    def record(self, chunk_id: str) -> ChunkRecord | None:
        """What is known of a chunk; None where there is no such chunk."""
        return self.records([chunk_id]).get(chunk_id)

    def records(self, chunk_ids: Iterable[str], *, tokens: bool = True) -> dict[str, ChunkRecord]:
        """Records by chunk id, in the order asked for; unknown ids are left out.

        tokens: False where only texts are needed. Tokens, keys and traces that are damaged are then
        left out.
        """
        ids = list(chunk_ids)
        rows = self._database.rows_in(f"{RECORDS} WHERE id IN ({{}})", ids)
        found = {row[0]: to_record(row, self._database.path, strict=tokens) for row in rows}
        return {chunk_id: found[chunk_id] for chunk_id in ids if chunk_id in found}

    def readable(self, chunk_ids: Iterable[str]) -> dict[str, ChunkRecord]:
        """Like `records` without `tokens`; those that can't be read are left out, and logged."""
        ids = list(chunk_ids)
        try:
            return self.records(ids, tokens=False)
        except CatalogRowError as error:
            if len(ids) == 1:
                logger.warning("A chunk isn't looked for in prompts. %s", error)
                return {}
            return {name: record for i in ids for name, record in self.readable([i]).items()}

    def with_text(self, text: str) -> list[ChunkRecord]:
        """Records of the chunks that have this text, by document and index."""
        query = f"{RECORDS} WHERE text_hash = ? {IN_ORDER}"
        rows = self._database.rows(query, (text_hash(text),))
        return [to_record(row, self._database.path, strict=False) for row in rows]

    def predecessors(self, chunk_id: str, count: int) -> list[ChunkRecord]:
        """The `count` chunks right before this one in its document, in document order."""
        rows = self._database.rows(
            f"""{RECORDS}
            WHERE (captured, scope, document_id) =
                (SELECT captured, scope, document_id FROM chunks WHERE id = ?1)
            AND position < (SELECT position FROM chunks WHERE id = ?1)
            ORDER BY position DESC LIMIT ?2""",
            (chunk_id, count),
        )
        return [to_record(row, self._database.path, strict=True) for row in reversed(rows)]

    def scoped_texts(self, chunk_ids: Iterable[str]) -> list[tuple[str, str, str]]:
        """Chunk id, scope and text of these chunks, in any order; unknown ids are left out."""
        query = "SELECT id, scope, text FROM chunks WHERE id IN ({})"
        return self._database.rows_in(query, chunk_ids)

    def count(self) -> int:
        """How many chunks searches may find."""
        (found,) = self._database.column("SELECT count(*) FROM chunks WHERE NOT captured")
        return int(found)

    def count_by_scope(self) -> dict[str, int]:
        """How many chunks each scope has, of those that have any."""
        query = "SELECT scope, count(*) FROM chunks WHERE NOT captured GROUP BY 1 ORDER BY 1"
        return dict(self._database.rows(query))

    def scope_by_id(self) -> dict[str, str]:
        """The scope of each chunk that searches may find, by ascending id."""
        query = "SELECT id, scope FROM chunks WHERE NOT captured ORDER BY id"
        return dict(self._database.rows(query))
