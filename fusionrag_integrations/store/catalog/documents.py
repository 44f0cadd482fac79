"""The documents of a catalog, which own their chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.catalog import changes
from fusionrag_integrations.store.catalog.chunks import Chunks
from fusionrag_integrations.store.catalog.database import Database

# Chunks of a document in a query over documents.
_OF = """(chunks.captured, chunks.scope, chunks.document_id) =
    (documents.captured, documents.scope, documents.id)"""


@dataclass(frozen=True, slots=True)
class ListedDocument:
    """A document as it is listed. chunks: how many it has."""

    id: str
    title: str
    scope: str
    chunks: int


class Documents:
    """What was ingested, by scope and id. Ad-hoc chunks are in none."""

    def __init__(self, database: Database, chunks: Chunks) -> None:
        self._database = database
        self._chunks = chunks

    def all(self) -> list[DocumentKey]:
        """All documents, by scope and id."""
        query = "SELECT id, scope FROM documents WHERE NOT captured ORDER BY scope, id"
        return [DocumentKey(*row) for row in self._database.rows(query)]

    def page(
        self, scopes: Sequence[str] | None, after: str | None, limit: int
    ) -> tuple[list[ListedDocument], bool]:
        """At least `limit` documents, by id and scope, and whether there are more.

        scopes: None for every one. after: only ids beyond this one. Those of several scopes that
        have the same id are on one page.
        """
        found = "NOT captured AND id > ?"
        given: list[object] = ["" if after is None else after]
        if scopes is not None:
            found += f" AND scope IN ({', '.join('?' * len(scopes))})"
            given += scopes
        query = f"SELECT id FROM documents WHERE {found} ORDER BY id LIMIT 1 OFFSET ?"
        last = self._database.column(query, (*given, limit - 1))
        page = f"{found} AND id <= ?" if last else found
        rows = self._database.rows(
            f"""SELECT id, scope, (SELECT title FROM chunks WHERE {_OF} LIMIT 1),
                (SELECT count(*) FROM chunks WHERE {_OF})
                FROM documents WHERE {page} ORDER BY id, scope""",
            (*given, *last),
        )
        more = bool(last and self._database.rows(query, (last[0], *given[1:], 0)))
        return [ListedDocument(i, title or "", scope, n) for i, scope, title, n in rows], more

    def content_hash(self, document: DocumentKey) -> str | None:
        """The content hash that the document was put in with; None where there is none."""
        query = "SELECT content_hash FROM documents WHERE NOT captured AND scope = ? AND id = ?"
        found = self._database.column(query, (document.scope, document.id))
        return found[0] if found else None

    def replace(
        self,
        document: DocumentKey,
        content_hash: str,
        records: Sequence[ChunkRecord],
        vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Put a document and its chunks in the place of what it names.

        Chunks whose ids stay keep their isolated keys and vectors; vectors: of the others, by
        chunk id. Fused keys of all of the document's chunks are cleared, and so are those of
        others made with a chunk that is gone. Fused keys in `records` are ignored.

        Raises `InvalidInputError` for records of another document or with repeated ids.
        """
        known = {record.chunk.id for record in records}
        if len(known) < len(records):
            raise InvalidInputError(f"Document {document.id!r} has two chunks with the same id.")
        if any(record.chunk.document != document for record in records):
            raise InvalidInputError(f"Document {document.id!r} was given another one's chunks.")
        with self._database.transaction() as db:
            changes.put_document(db, document, content_hash, records)
            changes.put_vectors(db, {i: v for i, v in (vectors or {}).items() if i in known})

    def mark_changed(self, document: DocumentKey) -> None:
        """Let the next ingest of a document replace it, whatever its content is then."""
        query = "UPDATE documents SET content_hash = '' WHERE NOT captured AND scope = ? AND id = ?"
        with self._database.transaction() as db:
            db.execute(query, (document.scope, document.id))

    def delete(self, documents: Iterable[DocumentKey]) -> int:
        """Delete documents with their chunks, and every fused key made with one of those.

        Returns how many documents there were.
        """
        keys = list(documents)
        with self._database.transaction() as db:
            changes.clear_fused_with(db, self._chunks.ids(keys))
            query = "DELETE FROM documents WHERE captured = 0 AND scope = ? AND id = ?"
            deleted = db.executemany(query, [(key.scope, key.id) for key in keys]).rowcount
            if deleted:
                changes.raise_revision(db, searchable=True)
        return deleted
