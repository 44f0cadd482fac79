"""The vectors that chunks are found by: of them the vector index is made."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence

from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import CatalogRowError
from fusionrag_integrations.store.catalog.changes import put_vectors, raise_revision
from fusionrag_integrations.store.catalog.database import Database


class Vectors:
    """By chunk id; unknown ids are left out. Reading raises `CatalogRowError` for damaged ones."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, chunk_ids: Iterable[str]) -> dict[str, list[float]]:
        """The vectors of these chunks."""
        packed = self.packed(chunk_ids).items()
        return {i: list(struct.unpack(f"<{len(vector) // 4}f", vector)) for i, vector in packed}

    def packed(self, chunk_ids: Iterable[str]) -> dict[str, bytes]:
        """The same as bytes: little-endian float32."""
        query = "SELECT chunk_id, vector FROM vectors WHERE chunk_id IN ({})"
        rows = self._database.rows_in(query, chunk_ids)
        return {i: self._decompressed(i, vector) for i, vector in rows}

    def missing(self) -> dict[str, DocumentKey]:
        """The chunks that no search can find by its vector, with their documents."""
        query = """SELECT id, document_id, scope FROM chunks
            WHERE NOT captured AND id NOT IN (SELECT chunk_id FROM vectors)"""
        return {row[0]: DocumentKey(*row[1:]) for row in self._database.rows(query)}

    def set(self, vectors: Mapping[str, Sequence[float]]) -> None:
        """Write chunks' vectors, in the place of those that were known."""
        with self._database.transaction() as db:
            put_vectors(db, vectors)
            raise_revision(db, searchable=True)

    def _decompressed(self, chunk_id: str, vector: bytes) -> bytes:
        try:
            numbers = zlib.decompress(vector)
            if len(numbers) % 4:
                raise ValueError(f"{len(numbers)} bytes are no float32 numbers")
        except (zlib.error, TypeError, ValueError) as error:
            raise CatalogRowError(
                f"The catalog {self._database.path} is damaged: the vector of chunk {chunk_id!r} "
                f"can't be used ({error}). `fusionrag repair` rebuilds it."
            ) from error
        return numbers
