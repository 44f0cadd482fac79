"""Which KV is true of which chunk: keys, the neighbours of fused KV, and what fusing showed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fusionrag_integrations.documents.chunk_record import ChunkRecord, ContextTrace
from fusionrag_integrations.documents.types import Chunk, DocumentKey
from fusionrag_integrations.store.catalog.chunks import Chunks
from fusionrag_integrations.store.catalog.database import Database
from fusionrag_integrations.store.catalog.rows import IN_ORDER, checksum, parameters, trace_row


class KVKeys:
    """Keys of isolated and fused KV, as KV records are named by them."""

    def __init__(self, database: Database, chunks: Chunks) -> None:
        self._database = database
        self._chunks = chunks

    def keys_by_chunk(self) -> list[tuple[str, str, str]]:
        """Chunk id, isolated key and fused key of all chunks, by document and index."""
        query = f"SELECT id, isolated_key, fused_key FROM chunks WHERE NOT captured {IN_ORDER}"
        return self._database.rows(query)

    def fused_ids(self, scope: str) -> list[str]:
        """Ids of a scope's chunks that have fused KV, ascending."""
        query = """SELECT id FROM chunks WHERE scope = ? AND fused_key != '' AND NOT captured
            ORDER BY id"""
        return self._database.column(query, (scope,))

    def unfused_ids(self) -> list[str]:
        """Ids of the chunks without fused KV, by document and index."""
        query = f"SELECT id FROM chunks WHERE fused_key = '' AND NOT captured {IN_ORDER}"
        return self._database.column(query)

    def neighbours(self, chunk_id: str) -> tuple[str, ...]:
        """Ids of the chunks that its fused KV was made behind, in order."""
        query = "SELECT neighbour_id FROM neighbours WHERE chunk_id = ? ORDER BY position"
        return tuple(self._database.column(query, (chunk_id,)))

    def neighbour_chunks(self, records: Sequence[ChunkRecord]) -> dict[str, list[Chunk]]:
        """The chunks behind which each record's fused KV was computed, by its chunk's id.

        Without those that are gone, and without records that have other fused KV by now.
        """
        now = self._chunks.readable(record.chunk.id for record in records)
        ids = {
            record.chunk.id: self.neighbours(record.chunk.id)
            for record in records
            if now.get(record.chunk.id, record).fused_key == record.fused_key
        }
        known = self._chunks.readable({i for neighbours in ids.values() for i in neighbours})
        return {
            chunk_id: [known[i].chunk for i in neighbours if i in known]
            for chunk_id, neighbours in ids.items()
        }

    def set_fused(
        self,
        chunk_id: str,
        fused_key: str,
        neighbour_ids: Sequence[str],
        trace: ContextTrace | None = None,
    ) -> bool:
        """Record the chunk's fused KV, made behind these chunks, in this order.

        trace: what fusing showed; None where that is known already. Returns False and writes
        nothing if the chunk or a neighbour is gone meanwhile, or no longer in the same scope.
        """
        with self._database.transaction() as db:
            query = """SELECT id FROM chunks WHERE id IN ({})
                AND scope = (SELECT scope FROM chunks WHERE id = ?)"""
            wanted = {chunk_id, *neighbour_ids}
            if len(self._database.rows_in(query, wanted, chunk_id)) < len(wanted):
                return False
            query = """UPDATE chunks SET fused_key = ?1, traced_key = ?1, fused_sum = ?2
                WHERE id = ?3"""
            db.execute(query, (fused_key, checksum(chunk_id, fused_key), chunk_id))
            if trace is not None:
                query = "INSERT OR REPLACE INTO traces VALUES (?, ?, ?, ?)"
                db.execute(query, trace_row(fused_key, trace))
            db.execute("DELETE FROM neighbours WHERE chunk_id = ?", (chunk_id,))
            db.executemany(
                "INSERT INTO neighbours VALUES (?, ?, ?)",
                [(chunk_id, i, neighbour) for i, neighbour in enumerate(neighbour_ids)],
            )
        return True

    def keys_of(self, documents: Iterable[DocumentKey]) -> set[str]:
        """Keys of the KV that was made of, or behind, the chunks of these documents."""
        chunk_ids = self._chunks.ids(documents)
        own = "SELECT isolated_key, fused_key, traced_key FROM chunks WHERE id IN ({})"
        behind = """SELECT fused_key, traced_key FROM chunks
            WHERE id IN (SELECT chunk_id FROM neighbours WHERE neighbour_id IN ({}))"""
        rows = [row for query in (own, behind) for row in self._database.rows_in(query, chunk_ids)]
        return {key for row in rows for key in row} - {""}

    def live_keys(self) -> set[str]:
        """Keys of all KV in use; a record under another key is garbage."""
        query = "SELECT isolated_key FROM chunks UNION SELECT fused_key FROM chunks"
        return set(self._database.column(query)) - {""}

    def dead_keys(self, keys: Iterable[str]) -> list[str]:
        """Those of these keys that no chunk uses, ascending."""
        keys = set(keys)
        for column in ("isolated_key", "fused_key"):
            query = f"SELECT {column} FROM chunks WHERE {column} IN ({{}})"
            keys -= {row[0] for row in self._database.rows_in(query, keys)}
        return sorted(keys)

    def traced_keys(self) -> set[str]:
        """Fused keys of the KV whose traces are known."""
        return set(self._database.column("SELECT traced_key FROM traces"))

    def delete_old_traces(self, keys: Iterable[str] | None = None) -> None:
        """Delete the traces, of these fused keys or all, that are no chunk's last one any more."""
        unused = """DELETE FROM traces WHERE NOT EXISTS
            (SELECT 1 FROM chunks WHERE chunks.traced_key = traces.traced_key)"""
        with self._database.transaction() as db:
            if keys is None:
                db.execute(unused)
            else:
                db.executemany(f"{unused} AND traced_key = ?", parameters(keys))
