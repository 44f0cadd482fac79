"""The catalog of a store: opened, created, closed, and divided by subject."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.keys import fused_key
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import CatalogRowError, StoreError, StoreNotFoundError
from fusionrag_integrations.store.catalog import schema, store_row
from fusionrag_integrations.store.catalog.adhoc import AdHocRows
from fusionrag_integrations.store.catalog.changes import raise_revision
from fusionrag_integrations.store.catalog.chunks import Chunks
from fusionrag_integrations.store.catalog.database import Database, batches, connect
from fusionrag_integrations.store.catalog.documents import Documents
from fusionrag_integrations.store.catalog.kv import KVKeys
from fusionrag_integrations.store.catalog.rows import RECORDS, REPAIR_HINT, to_record
from fusionrag_integrations.store.catalog.vectors import Vectors
from fusionrag_integrations.store.info import CatalogCounts, StoreInfo
from fusionrag_integrations.support.atomic_files import FILE_MODE
from fusionrag_integrations.support.threads import Closable


class Catalog(Closable):
    """The catalog of one store. Safe to use from several threads and processes.

    documents, chunks, kv, vectors, adhoc: what it holds, by subject. info: what the store was made
    with.

    Everything raises `StoreError` where the file is damaged or locked for too long, and
    `StoreClosedError` once it is closed; what reads chunks raises `CatalogRowError` for one whose
    row isn't what was written.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.info = store_row.read_info(database)
        _ = self.revision, self.texts_revision  # raise for a damaged row
        self.chunks = Chunks(database)
        self.documents = Documents(database, self.chunks)
        self.kv = KVKeys(database, self.chunks)
        self.vectors = Vectors(database)
        self.adhoc = AdHocRows(database)

    @classmethod
    def create(cls, path: str | Path, info: StoreInfo, revision: int = 0) -> Catalog:
        """Make an empty catalog in an existing directory, which counts from a revision on.

        Raises `StoreError` where there is a file with content already.
        """
        path = Path(path).absolute()
        with suppress(OSError):  # connecting raises a clear error
            path.touch(FILE_MODE)
        with connect(path, "rwc") as db:
            schema.check_empty(db, path)
            with db:
                db.execute("BEGIN IMMEDIATE")
                schema.create_tables(db)
                store_row.write_info(db, info, revision)
            return cls(Database(path, db))

    @classmethod
    def open(cls, path: str | Path) -> Catalog:
        """Open the catalog of an existing store.

        Raises `StoreNotFoundError`, `StoreMismatchError` for one of another release's schema,
        `CatalogRowError` where the row about the store itself is damaged, and `StoreError` for a
        file that is no catalog.
        """
        path = Path(path).absolute()
        if not os.path.lexists(path):
            raise StoreNotFoundError(f"There is no store at {path.parent}: {path} is missing.")
        with connect(path, "rw") as db:
            schema.check_schema(db, path)
            return cls(Database(path, db))

    def close(self) -> None:
        """Close the file, once no thread reads or writes. May be called again."""
        self._database.close()

    def check_open(self) -> None:
        """Raises `StoreClosedError` once the catalog is closed."""
        self._database.check_open()

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    @property
    def store(self) -> Path:
        """The directory of the store whose catalog this is."""
        return self.path.parent

    @property
    def revision(self) -> int:
        """A number that every change of documents raises, by whichever process; KV doesn't.

        Read it before the rows that it stands for: a change in between then shows next time.
        """
        return store_row.read_count(self._database, "revision")

    @property
    def texts_revision(self) -> int:
        """Like `revision`, of all texts: ad-hoc chunks' too."""
        return store_row.read_count(self._database, "texts")

    def replace(self, draft: Path) -> None:
        """Put another catalog of this store in the place of this one, for all threads.

        draft: its file, on the same disk. Its counts go on from those of both, so that whatever
        follows them reads again. Raises `StoreError`.
        """
        with self._database.held():
            counts = [(self.revision, self.texts_revision)]
            with Catalog.open(draft) as other:
                counts.append((other.revision, other.texts_revision))
            revision, texts = (max(of_both) + 1 for of_both in zip(*counts, strict=True))
            store_row.set_counts(draft, revision, texts)
            self._database.replace(draft)

    def raise_revision(self) -> None:
        """Make all processes that have the store open read its index again."""
        with self._database.transaction() as db:
            raise_revision(db, searchable=True)

    def counts(self) -> CatalogCounts:
        """How much the store holds."""
        query = """SELECT (SELECT count(*) FROM documents WHERE NOT captured), count(*),
            total(fused_key != ''), total(length(token_ids)) / 4,
            (SELECT count(*) FROM chunks WHERE captured) FROM chunks WHERE NOT captured"""
        return CatalogCounts(*map(int, self._database.rows(query)[0]))

    def check(self) -> None:
        """Read all of the file and the vectors. Raises `StoreError` where anything is damaged."""
        found = self._database.column("PRAGMA integrity_check")
        strays = self._database.rows("PRAGMA foreign_key_check")
        if found != ["ok"] or strays:
            if found == ["ok"]:
                found = [f"{len(strays)} rows refer to others that are gone"]
            raise StoreError(f"The catalog {self.path} is damaged: {'; '.join(found)}")
        for batch in batches(self.chunks.all_ids()):
            self.vectors.of(batch)

    def damaged_chunks(self) -> Iterator[tuple[str, DocumentKey | None, str]]:
        """Chunks whose rows are damaged, each with its document and with what is wrong.

        The document is None where it is an ad-hoc chunk. A fused key must be that of the chunk's
        neighbours as they are.
        """
        for batch in batches(self.chunks.all_ids()):
            for row in self._database.rows_in(f"{RECORDS} WHERE id IN ({{}})", batch):
                try:
                    self._check_fused(to_record(row, self.path, strict=True))
                except CatalogRowError as error:
                    yield row[0], None if row[1] else DocumentKey(row[3], row[2]), str(error)

    def _check_fused(self, record: ChunkRecord) -> None:
        query = """SELECT isolated_key FROM neighbours JOIN chunks ON id = neighbour_id
            WHERE chunk_id = ? ORDER BY neighbours.position"""
        keys = self._database.column(query, (record.chunk.id,))
        name = f"chunk {record.chunk.index} of document {record.chunk.document_id!r} in {self.path}"
        if record.fused_key != (fused_key(record.isolated_key, keys) if keys else ""):
            raise CatalogRowError(
                f"The fused key of {name} is not of its neighbours. {REPAIR_HINT}"
            )
        if record.fused_key and record.trace is None:
            raise CatalogRowError(f"The trace of {name} is lost. {REPAIR_HINT}")
