"""What has been ingested, and which KV belongs to which chunk: a SQLite file.

documents ──< chunks ──< neighbours      a fused key and the chunks it was made with, in order
              chunks ─── vectors         what the index is made of, and can be made of again
              chunks >── traces          what fusing showed, by the fused key: a chunk's last one

Documents are named by scope and id; captured texts, which are in none, by what no user can name.

The rule that keeps stale content out: a fused key stands only while the chunk, its document
and every neighbour are as they were when the KV was made. Whatever changes one of them clears
the key in the same transaction.

Rows carry checksums, which are checked whenever they are used: one of what a chunk is and says,
one of its tokens. Damage to the second leaves a text that can be found and computed afresh. So does
the one row of `store`; where that is damaged the catalog isn't opened.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from hashlib import sha256
from pathlib import Path
from threading import RLock
from typing import Any

import xxhash

from fusionrag_integrations.durable import FILE_MODE
from fusionrag_integrations.errors import (
    CatalogRowError,
    InvalidInputError,
    StoreClosedError,
    StoreError,
    StoreMismatchError,
    StoreNotFoundError,
)
from fusionrag_integrations.forks import Forkable
from fusionrag_integrations.inputs import check_fields
from fusionrag_integrations.keys import fused_key, metadata_json, record_signature
from fusionrag_integrations.threads import Closable
from fusionrag_integrations.types import (
    Chunk,
    ChunkRecord,
    ContextTrace,
    DocumentKey,
    EncodedChunk,
    KVFormat,
)

logger = logging.getLogger(__name__)

CATALOG_FILE = "catalog.sqlite"  # its name in a store's directory
UNFINISHED_FILE = "unfinished"  # beside it while a store is changed, and after a crash
SCHEMA_VERSION = 6
BATCH = 500  # parameters of one statement; SQLite may refuse more than 999
BUSY_SECONDS = 30.0  # how long to wait for another process's transaction

_MEND = "`fusionrag repair` mends it; where it can't, ingest the document again or delete it."
_APPLICATION_ID = 0x46524147  # "FRAG": tells our files from other SQLite databases
_SCHEMA = (
    """CREATE TABLE store (
        format_version INTEGER NOT NULL, signature TEXT NOT NULL, model_source TEXT NOT NULL,
        embedding TEXT NOT NULL, chunk_tokens INTEGER NOT NULL, kv_format TEXT NOT NULL,
        salt_id TEXT NOT NULL, probes TEXT NOT NULL, store_id TEXT NOT NULL,
        info_sum BLOB NOT NULL, revision INTEGER NOT NULL, texts INTEGER NOT NULL)""",
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
_WRITTEN = """id, captured, scope, document_id, position, text, title, metadata, content_sum,
    token_ids, offsets, isolated_key, tokens_sum, text_hash"""
_COLUMNS = _WRITTEN.replace(
    "text_hash", "fused_key, fused_sum, traced_key, trace, traced_with, trace_sum"
)
_RECORDS = "chunks LEFT JOIN traces USING (traced_key)"
_IN_ORDER = "ORDER BY scope, document_id, position"


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store was made with; none of it can change afterwards.

    model_source: the directory or hub name that the model was loaded from. kv_format: in which
    KV is kept. salt_id: stands for the store's salt, which itself is kept nowhere. probes: what
    the embedding makes of a few texts; `embedding` is only what messages call it by. store_id:
    tells a store's files from another's; drawn when it is made, and no key depends on it.
    """

    format_version: int
    signature: str
    model_source: str
    embedding: str
    chunk_tokens: int
    kv_format: KVFormat
    salt_id: str = ""
    probes: str = ""
    store_id: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def record_signature(self) -> str:
        """What every KV record of the store carries, and every key depends on."""
        return record_signature(self.signature, self.kv_format, self.salt_id)


_INFO_COLUMNS = ", ".join(field.name for field in fields(StoreInfo))


@dataclass(frozen=True, slots=True)
class CatalogCounts:
    """How much a store holds. tokens: of all chunks, in the model's tokens.

    captured_chunks: those beside the others that were kept from requests.
    """

    documents: int
    chunks: int
    fused_chunks: int
    tokens: int
    captured_chunks: int = 0


class Catalog(Forkable, Closable):
    """The catalog of one store. Safe to use from several threads and processes.

    Everything raises `StoreError` where the file is damaged or locked for too long, and
    `StoreClosedError` once it is closed; what reads chunks raises `CatalogRowError` for one whose
    row isn't what was written.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._closed = False
        self._db: sqlite3.Connection | None = connection
        self._file = _file_at(path)  # that the connection is to
        self._lock = RLock()
        super().__init__()
        rows = self._rows(f"SELECT {_INFO_COLUMNS}, info_sum FROM store")
        if len(rows) != 1 or rows[0][-1] != _checksum(*rows[0][:-1]):
            raise self._damaged_row()
        self._info = StoreInfo(*rows[0][:-1])
        _ = self.revision, self.texts_revision

    @classmethod
    def create(cls, path: str | Path, info: StoreInfo, revision: int = 0) -> Catalog:
        """Make an empty catalog in an existing directory, which counts from a revision on.

        Raises `StoreError` where there is a file with content already.
        """
        path = Path(path).absolute()
        with suppress(OSError):  # what hinders it is named when the file is opened
            path.touch(FILE_MODE)
        with _opening(path, "rwc") as db:
            if _kind(db) != (0, 0, 0):
                raise StoreError(f"There is a database at {path} already; open it instead.")
            with db:
                db.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:
                    db.execute(statement)
                _write_info(db, info, revision)
                db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            return cls(path, db)

    @classmethod
    def open(cls, path: str | Path) -> Catalog:
        """Open the catalog of an existing store.

        Raises `StoreNotFoundError`, `StoreMismatchError` for one of another release's schema,
        `CatalogRowError` where what it says of the store itself is damaged, and `StoreError` for a
        file that is no catalog.
        """
        path = Path(path).absolute()
        if not os.path.lexists(path):
            raise StoreNotFoundError(f"There is no store at {path.parent}: {path} is missing.")
        with _opening(path, "rw") as db:
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
            return cls(path, db)

    @staticmethod
    def restore_info(path: Path, info: StoreInfo, revision: int) -> bool:
        """Write anew what a catalog says of the store itself, and count from a revision on.

        Returns False and writes nothing where it said something else: then neither its checksum
        nor its values are those of `info`. Raises `StoreError`.
        """
        with _opening(path, "rw") as opened, closing(opened) as db, db:
            db.execute("BEGIN IMMEDIATE")
            rows = db.execute(f"SELECT {_INFO_COLUMNS}, info_sum FROM store").fetchall()
            values = astuple(info)
            same = [row[:-1] == values or row[-1] == _checksum(*values) for row in rows]
            if not (same and all(same)):
                return False
            db.execute("DELETE FROM store")
            _write_info(db, info, revision)
        return True

    @staticmethod
    def last_revision(path: Path) -> int:
        """The revision that a catalog had reached, however damaged it is; 0 where nothing says."""
        try:
            with _opening(path, "rw") as opened, closing(opened) as db:
                counts = [
                    count for row in db.execute("SELECT revision FROM store") for count in row
                ]
        except StoreError:
            return 0
        return max(filter(_is_count, counts), default=0)

    def close(self) -> None:
        """Release the file, once nobody reads or writes. Nothing happens the second time."""
        with self._lock:
            self._closed = True
            if self._db is not None:
                self._db.close()

    def check_open(self) -> None:
        """Raises `StoreClosedError` once the catalog is closed."""
        if self._closed:
            raise StoreClosedError.of(self.store)

    def hold(self) -> None:
        """A forked child must neither use nor close SQLite's connections: both open new ones."""
        self._lock.acquire()
        if self._db is not None:
            self._db.close()
            self._db = None

    def release(self) -> None:
        self._lock.release()

    def _connection(self) -> sqlite3.Connection:
        """To the file that is there now: a repair puts another in its place."""
        self.check_open()
        found = _file_at(self._path)
        if self._db is not None and found not in (None, self._file):
            self._db.close()
            self._db = None
        if self._db is None:
            with _opening(self._path, "rw") as db:
                self._db, self._file = db, found
        return self._db

    def check(self) -> None:
        """Read all of the file. Raises `StoreError` where anything is damaged."""
        found = [row[0] for row in self._rows("PRAGMA integrity_check")]
        strays = self._rows("PRAGMA foreign_key_check")
        if found != ["ok"] or strays:
            if found == ["ok"]:
                found = [f"{len(strays)} rows refer to others that are gone"]
            raise StoreError(f"The catalog {self._path} is damaged: {'; '.join(found)}")
        ids = self.text_ids()
        for start in range(0, len(ids), BATCH):
            self.vectors(ids[start : start + BATCH])

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def store(self) -> Path:
        """The directory of the store whose catalog this is."""
        return self._path.parent

    @property
    def info(self) -> StoreInfo:
        return self._info

    @property
    def revision(self) -> int:
        """A number that every change of documents raises, by whichever process; KV doesn't.

        Read it before the rows that it stands for: a change in between then shows next time.
        """
        return self._count("revision")

    @property
    def texts_revision(self) -> int:
        """Like `revision`, of all texts: captured ones too."""
        return self._count("texts")

    def _count(self, column: str) -> int:
        counts = [row[0] for row in self._rows(f"SELECT {column} FROM store")]
        if len(counts) != 1 or not _is_count(counts[0]):
            raise self._damaged_row()
        return int(counts[0])

    def _damaged_row(self) -> CatalogRowError:
        return CatalogRowError(
            f"What {self._path} says of the store itself is damaged. `fusionrag repair` takes it "
            "from store.json."
        )

    def document_hash(self, document: DocumentKey) -> str | None:
        """The content hash that the document was put in with; None where there is none."""
        query = "SELECT content_hash FROM documents WHERE NOT captured AND scope = ? AND id = ?"
        rows = self._rows(query, (document.scope, document.id))
        return rows[0][0] if rows else None

    def documents(self) -> list[DocumentKey]:
        """All documents, by scope and id."""
        query = "SELECT id, scope FROM documents WHERE NOT captured ORDER BY scope, id"
        return [DocumentKey(*row) for row in self._rows(query)]

    def chunk_ids(self, documents: Iterable[DocumentKey] | None = None) -> list[str]:
        """Ids of the chunks of these documents, or of all; each document's in its order."""
        if documents is None:
            query = f"SELECT id FROM chunks WHERE NOT captured {_IN_ORDER}"
            return [row[0] for row in self._rows(query)]
        query = """SELECT id FROM chunks
            WHERE captured = 0 AND scope = ? AND document_id = ? ORDER BY position"""
        keys = dict.fromkeys(documents)
        return [row[0] for key in keys for row in self._rows(query, (key.scope, key.id))]

    def scopes(self) -> dict[str, int]:
        """How many chunks each scope has, of those that have any."""
        query = (
            "SELECT scope, count(*) FROM chunks WHERE NOT captured GROUP BY scope ORDER BY scope"
        )
        return dict(self._rows(query))

    def fused_ids(self, scope: str) -> list[str]:
        """Ids of a scope's chunks that have fused KV, ascending."""
        query = """SELECT id FROM chunks WHERE scope = ? AND fused_key != '' AND NOT captured
            ORDER BY id"""
        return [row[0] for row in self._rows(query, (scope,))]

    def text_ids(self) -> list[str]:
        """Like `chunk_ids`, with captured chunks."""
        return [row[0] for row in self._rows(f"SELECT id FROM chunks {_IN_ORDER}")]

    def captured_keys(self) -> list[str]:
        """Keys of captured chunks' KV, isolated and fused."""
        query = """SELECT isolated_key FROM chunks WHERE captured
            UNION SELECT fused_key FROM chunks WHERE captured AND fused_key != ''"""
        return [row[0] for row in self._rows(query)]

    def capture(self, record: ChunkRecord) -> None:
        """Keep a text of a request: its chunk is known, and belongs to no document."""
        with self._transaction() as db:
            self._put(db, record.chunk.document, "", [record], captured=True)

    def forget_captured(self, isolated_keys: Iterable[str]) -> None:
        """Delete the captured chunks with these keys."""
        query = "SELECT id FROM chunks WHERE captured AND isolated_key IN ({})"
        self.forget_texts([row[0] for row in self._rows_in(query, isolated_keys)])

    def forget_texts(self, chunk_ids: Sequence[str]) -> None:
        """Delete these captured chunks."""
        with self._transaction() as db:
            _clear_fused_with(db, chunk_ids)
            _forget_captured(db, "id", chunk_ids)
            _raise_revision(db, searchable=False)

    def replace_document(
        self,
        document: DocumentKey,
        content_hash: str,
        records: Sequence[ChunkRecord],
        vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Put a document and its chunks in the place of what it names.

        Chunks whose ids stay keep their isolated keys and vectors; vectors: of the others, by
        chunk id. Fused keys of all of the document's chunks are cleared, and so are those of
        others made with a chunk that went. Fused keys in
        `records` are not taken over.

        Raises `InvalidInputError` for records of another document or with repeated ids.
        """
        if len({record.chunk.id for record in records}) < len(records):
            raise InvalidInputError(f"Document {document.id!r} has two chunks with the same id.")
        if any(record.chunk.document != document for record in records):
            raise InvalidInputError(f"Document {document.id!r} was given another one's chunks.")
        with self._transaction() as db:
            self._put(db, document, content_hash, records, captured=False)
            known = {record.chunk.id for record in records}
            _write_vectors(db, {i: v for i, v in (vectors or {}).items() if i in known})

    def _put(
        self,
        db: sqlite3.Connection,
        document: DocumentKey,
        content_hash: str,
        records: Sequence[ChunkRecord],
        captured: bool,
    ) -> None:
        rows = {record.chunk.id: _to_row(record, captured) for record in records}
        name = (captured, document.scope, document.id)
        of_document = "captured = ? AND scope = ? AND document_id = ?"
        query = f"SELECT id, isolated_key FROM chunks WHERE {of_document}"
        old = dict(db.execute(query, name).fetchall())
        keys = {record.chunk.id: record.isolated_key for record in records}
        _clear_fused_with(db, [i for i, key in old.items() if keys.get(i) != key])
        db.execute(
            f"""DELETE FROM neighbours
            WHERE chunk_id IN (SELECT id FROM chunks WHERE {of_document})""",
            name,
        )
        db.executemany("DELETE FROM chunks WHERE id = ?", _each(old.keys() - keys.keys()))
        db.execute(
            """INSERT INTO documents VALUES (?, ?, ?, ?)
            ON CONFLICT DO UPDATE SET content_hash = excluded.content_hash""",
            (*name, content_hash),
        )
        marks = ", ".join("?" * len(_WRITTEN.split(",")))
        db.executemany(
            f"UPDATE chunks SET ({_WRITTEN}, fused_key) = ({marks}, '') WHERE id = ?",
            [(*row, chunk_id) for chunk_id, row in rows.items() if chunk_id in old],
        )
        db.executemany(
            f"INSERT INTO chunks ({_WRITTEN}) VALUES ({marks})",
            [row for chunk_id, row in rows.items() if chunk_id not in old],
        )
        if not captured:  # what was captured of texts that are ingested now would be ambiguous
            _forget_captured(db, "isolated_key", keys.values())
        _raise_revision(db, searchable=not captured)

    def mark_changed(self, document: DocumentKey) -> None:
        """Let the next ingest of a document replace it, whatever it says then."""
        query = "UPDATE documents SET content_hash = '' WHERE NOT captured AND scope = ? AND id = ?"
        with self._transaction() as db:
            db.execute(query, (document.scope, document.id))

    def delete_documents(self, documents: Iterable[DocumentKey]) -> int:
        """Delete documents with their chunks, and every fused key made with one of those.

        Returns how many documents there were.
        """
        keys = list(documents)
        with self._transaction() as db:
            _clear_fused_with(db, self.chunk_ids(keys))
            query = "DELETE FROM documents WHERE captured = 0 AND scope = ? AND id = ?"
            deleted = db.executemany(query, [(key.scope, key.id) for key in keys]).rowcount
            if deleted:
                _raise_revision(db, searchable=True)
        return deleted

    def set_fused(
        self,
        chunk_id: str,
        fused_key: str,
        neighbour_ids: Sequence[str],
        trace: ContextTrace | None = None,
    ) -> bool:
        """Note the chunk's fused KV, made behind these chunks, in this order.

        trace: what fusing showed; None where that is known already. Returns False and writes
        nothing if the chunk or a neighbour is gone meanwhile, or no longer in the same scope.
        """
        with self._transaction() as db:
            query = """SELECT id FROM chunks WHERE id IN ({})
                AND scope = (SELECT scope FROM chunks WHERE id = ?)"""
            wanted = {chunk_id, *neighbour_ids}
            if len(self._rows_in(query, wanted, chunk_id)) < len(wanted):
                return False
            query = """UPDATE chunks SET fused_key = ?1, traced_key = ?1, fused_sum = ?2
                WHERE id = ?3"""
            db.execute(query, (fused_key, _checksum(chunk_id, fused_key), chunk_id))
            if trace is not None:
                query = "INSERT OR REPLACE INTO traces VALUES (?, ?, ?, ?)"
                numbers, rest = _from_trace(trace)
                checksum = _checksum(fused_key, numbers, rest)
                db.execute(query, (fused_key, numbers, rest, checksum))
            db.execute("DELETE FROM neighbours WHERE chunk_id = ?", (chunk_id,))
            db.executemany(
                "INSERT INTO neighbours VALUES (?, ?, ?)",
                [(chunk_id, i, neighbour) for i, neighbour in enumerate(neighbour_ids)],
            )
        return True

    def without_vectors(self) -> dict[str, DocumentKey]:
        """The chunks that no search can find by its vector, with their documents."""
        query = """SELECT id, document_id, scope FROM chunks
            WHERE NOT captured AND id NOT IN (SELECT chunk_id FROM vectors)"""
        return {row[0]: DocumentKey(*row[1:]) for row in self._rows(query)}

    def set_vectors(self, vectors: Mapping[str, Sequence[float]]) -> None:
        """Note chunks' vectors, by chunk id, in the place of those that were known."""
        with self._transaction() as db:
            _write_vectors(db, vectors)
            _raise_revision(db, searchable=True)

    def vectors(self, chunk_ids: Iterable[str]) -> dict[str, list[float]]:
        """The vectors that chunks are found by, by chunk id; unknown ones are left out."""
        packed = self.packed_vectors(chunk_ids).items()
        return {i: list(struct.unpack(f"<{len(vector) // 4}f", vector)) for i, vector in packed}

    def packed_vectors(self, chunk_ids: Iterable[str]) -> dict[str, bytes]:
        """The same as bytes: little-endian float32. Raises `CatalogRowError` for a damaged one."""
        query = "SELECT chunk_id, vector FROM vectors WHERE chunk_id IN ({})"
        return {i: self._unpacked(i, vector) for i, vector in self._rows_in(query, chunk_ids)}

    def chunk_scopes(self) -> dict[str, str]:
        """The scope of each chunk that searches may find, by ascending id."""
        return dict(self._rows("SELECT id, scope FROM chunks WHERE NOT captured ORDER BY id"))

    def _unpacked(self, chunk_id: str, vector: bytes) -> bytes:
        try:
            numbers = zlib.decompress(vector)
            if len(numbers) % 4:
                raise ValueError(f"{len(numbers)} bytes are no float32 numbers")
        except (zlib.error, TypeError, ValueError) as error:
            raise CatalogRowError(
                f"The catalog {self._path} is damaged: the vector of chunk {chunk_id!r} can't be "
                f"used ({error}). `fusionrag repair` rebuilds it."
            ) from error
        return numbers

    def raise_revision(self) -> None:
        """Let everybody who has the store open read its index anew."""
        with self._transaction() as db:
            _raise_revision(db, searchable=True)

    def forget_traces(self, keys: Iterable[str] | None = None) -> None:
        """Delete the traces, of these fused keys or all, that are no chunk's last one any more."""
        unused = """DELETE FROM traces WHERE NOT EXISTS
            (SELECT 1 FROM chunks WHERE chunks.traced_key = traces.traced_key)"""
        with self._transaction() as db:
            if keys is None:
                db.execute(unused)
            else:
                db.executemany(f"{unused} AND traced_key = ?", _each(keys))

    def traced_keys(self) -> set[str]:
        """Fused keys of the KV whose traces are known."""
        return {row[0] for row in self._rows("SELECT traced_key FROM traces")}

    def record(self, chunk_id: str) -> ChunkRecord | None:
        """What is known of a chunk; None where there is no such chunk."""
        return self.records([chunk_id]).get(chunk_id)

    def records(self, chunk_ids: Iterable[str], *, tokens: bool = True) -> dict[str, ChunkRecord]:
        """Records by chunk id, in the order asked for; unknown ids are left out.

        tokens: False where texts are asked for. Tokens, keys and traces that are damaged are then
        left out.
        """
        ids = list(chunk_ids)
        rows = self._rows_in(f"SELECT {_COLUMNS} FROM {_RECORDS} WHERE id IN ({{}})", ids)
        found = {row[0]: self._record_of(row, strict=tokens) for row in rows}
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

    def damage(self) -> Iterator[tuple[str, DocumentKey | None, str]]:
        """Chunks whose rows are damaged, each with its document and with what is wrong.

        The document is None where it is a captured text. A fused key must be that of the chunk's
        neighbours as they are.
        """
        ids = self.text_ids()
        for start in range(0, len(ids), BATCH):
            query = f"SELECT {_COLUMNS} FROM {_RECORDS} WHERE id IN ({{}})"
            for row in self._rows_in(query, ids[start : start + BATCH]):
                try:
                    record = self._record_of(row, strict=True)
                    self._check_fused(record)
                except CatalogRowError as error:
                    yield row[0], None if row[1] else DocumentKey(row[3], row[2]), str(error)

    def _check_fused(self, record: ChunkRecord) -> None:
        query = """SELECT isolated_key FROM neighbours JOIN chunks ON id = neighbour_id
            WHERE chunk_id = ? ORDER BY neighbours.position"""
        keys = [row[0] for row in self._rows(query, (record.chunk.id,))]
        if record.fused_key != (fused_key(record.isolated_key, keys) if keys else ""):
            raise CatalogRowError(
                f"The fused key of {self._named(record.chunk)} is not of its neighbours. {_MEND}"
            )
        if record.fused_key and record.trace is None:
            raise CatalogRowError(f"The trace of {self._named(record.chunk)} is lost. {_MEND}")

    def scoped_texts(self, chunk_ids: Iterable[str]) -> list[tuple[str, str, str]]:
        """Chunk id, scope and text of these chunks, in any order; unknown ids are left out."""
        return self._rows_in("SELECT id, scope, text FROM chunks WHERE id IN ({})", chunk_ids)

    def with_text(self, text: str) -> list[ChunkRecord]:
        """Records of the chunks that have this text, by document and index."""
        query = f"SELECT {_COLUMNS} FROM {_RECORDS} WHERE text_hash = ? {_IN_ORDER}"
        rows = self._rows(query, (_text_hash(text),))
        return [self._record_of(row, strict=False) for row in rows]

    def kv_keys(self) -> list[tuple[str, str, str]]:
        """Chunk id, isolated key and fused key of all chunks, by document and index."""
        query = f"""SELECT id, isolated_key, fused_key FROM chunks WHERE NOT captured
            {_IN_ORDER}"""
        return self._rows(query)

    def unfused(self) -> list[str]:
        """Ids of the chunks without fused KV, by document and index."""
        query = f"""SELECT id FROM chunks WHERE fused_key = '' AND NOT captured
            {_IN_ORDER}"""
        return [row[0] for row in self._rows(query)]

    def predecessors(self, chunk_id: str, count: int) -> list[ChunkRecord]:
        """The `count` chunks right before this one in its document, in document order."""
        rows = self._rows(
            f"""SELECT {_COLUMNS} FROM {_RECORDS}
            WHERE (captured, scope, document_id) =
                (SELECT captured, scope, document_id FROM chunks WHERE id = ?1)
            AND position < (SELECT position FROM chunks WHERE id = ?1)
            ORDER BY position DESC LIMIT ?2""",
            (chunk_id, count),
        )
        return [self._record_of(row, strict=True) for row in reversed(rows)]

    def neighbours(self, chunk_id: str) -> tuple[str, ...]:
        """Ids of the chunks that its fused KV was made behind, in order."""
        query = "SELECT neighbour_id FROM neighbours WHERE chunk_id = ? ORDER BY position"
        return tuple(row[0] for row in self._rows(query, (chunk_id,)))

    def keys_of(self, documents: Iterable[DocumentKey]) -> set[str]:
        """Keys of the KV that was made of, or behind, the chunks of these documents."""
        chunk_ids = self.chunk_ids(documents)
        own = "SELECT isolated_key, fused_key, traced_key FROM chunks WHERE id IN ({})"
        behind = """SELECT fused_key, traced_key FROM chunks
            WHERE id IN (SELECT chunk_id FROM neighbours WHERE neighbour_id IN ({}))"""
        rows = [*self._rows_in(own, chunk_ids), *self._rows_in(behind, chunk_ids)]
        return {key for row in rows for key in row} - {""}

    def dead_keys(self, keys: Iterable[str]) -> list[str]:
        """Those of these keys that no chunk uses, ascending."""
        keys = set(keys)
        for column in ("isolated_key", "fused_key"):
            query = f"SELECT {column} FROM chunks WHERE {column} IN ({{}})"
            keys -= {row[0] for row in self._rows_in(query, keys)}
        return sorted(keys)

    def live_keys(self) -> set[str]:
        """Keys of all KV in use; a record under another key is garbage."""
        query = "SELECT isolated_key FROM chunks UNION SELECT fused_key FROM chunks"
        return {row[0] for row in self._rows(query)} - {""}

    def counts(self) -> CatalogCounts:
        """How much the store holds."""
        query = """SELECT (SELECT count(*) FROM documents WHERE NOT captured), count(*),
            total(fused_key != ''), total(length(token_ids)) / 4,
            (SELECT count(*) FROM chunks WHERE captured) FROM chunks WHERE NOT captured"""
        return CatalogCounts(*map(int, self._rows(query)[0]))

    def _record_of(self, row: tuple[Any, ...], strict: bool) -> ChunkRecord:
        """strict: whether damaged tokens, keys and traces are an error, or are left out."""
        chunk_id, captured, scope, document_id, index, text, title, metadata, *rest = row
        content_sum, token_ids, offsets, isolated_key, tokens_sum, *fused = rest
        if content_sum != _checksum(*row[:8]):
            raise CatalogRowError(
                f"Chunk {index!r} of document {document_id!r} is damaged in {self._path}. {_MEND}"
            )
        chunk = Chunk(chunk_id, document_id, index, text, title, scope, json.loads(metadata))
        if tokens_sum != _checksum(chunk_id, token_ids, offsets, isolated_key):
            self._damaged(chunk, "tokens", strict)
            return ChunkRecord(EncodedChunk(chunk, (), ()), "", captured=bool(captured))
        ids = struct.unpack(f"<{len(token_ids) // 4}i", token_ids)
        bounds = struct.unpack(f"<{len(offsets) // 4}i", offsets)
        encoded = EncodedChunk(chunk, ids, tuple(zip(bounds[::2], bounds[1::2], strict=True)))
        fused_key, fused_sum, traced_key, trace, traced_with, trace_sum = fused
        if fused_key and fused_sum != _checksum(chunk_id, fused_key):
            self._damaged(chunk, "fused key", strict)
            fused_key = ""
        known = None
        if trace_sum is not None:
            if trace_sum == _checksum(traced_key, trace, traced_with):
                known = _to_trace(trace, traced_with, len(ids))
            else:
                self._damaged(chunk, "trace", strict)
        return ChunkRecord(encoded, isolated_key, fused_key, known, bool(captured))

    def _damaged(self, chunk: Chunk, what: str, strict: bool) -> None:
        damage = f"The {what} of {self._named(chunk)} can't be used. {_MEND}"
        if strict:
            raise CatalogRowError(damage)
        logger.warning(damage)

    def _named(self, chunk: Chunk) -> str:
        return f"chunk {chunk.index} of document {chunk.document_id!r} in {self._path}"

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _named_errors(self._path), self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db

    def _rows(self, query: str, parameters: Sequence[object] = ()) -> list[Any]:
        with self._lock, _named_errors(self._path):
            return self._connection().execute(query, parameters).fetchall()

    def _rows_in(self, query: str, values: Iterable[str], *parameters: str) -> list[Any]:
        """Rows of a query with `IN ({})`, asked in batches; `parameters` come behind the list."""
        self.check_open()
        values = list(dict.fromkeys(values))
        rows: list[Any] = []
        for start in range(0, len(values), BATCH):
            batch = values[start : start + BATCH]
            rows += self._rows(query.format(", ".join("?" * len(batch))), (*batch, *parameters))
        return rows


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(
            f"The catalog {path} can't be used: {error}. If it is damaged, `fusionrag repair` "
            "rebuilds it."
        ) from error
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"A text can't be stored: {error}. Remove or replace lone surrogates."
        ) from error


@contextmanager
def _opening(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection in autocommit mode, which is closed if the block raises."""
    if path.is_symlink():
        raise StoreError(f"{path} is a symbolic link, which is not followed. Put the file there.")
    with _named_errors(path):
        # One connection under a lock serves all threads: statements here take well under 1 ms.
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # Text that is no text any more is read all the same: its checksum tells.
            db.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA synchronous = FULL")
            yield db
        except BaseException:
            db.close()
            raise


def _file_at(path: Path) -> tuple[int, int] | None:
    """Which file lies there, whatever it is called; None where there is none just now."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _kind(db: sqlite3.Connection) -> tuple[int, int, int]:
    """Number of tables, application id and schema version; all 0 in an empty file."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return tables, application_id, version


def _write_info(db: sqlite3.Connection, info: StoreInfo, revision: int) -> None:
    values = (*astuple(info), _checksum(*astuple(info)), revision, revision)
    columns = f"{_INFO_COLUMNS}, info_sum, revision, texts"
    db.execute(f"INSERT INTO store ({columns}) VALUES ({', '.join('?' * len(values))})", values)


def _is_count(value: object) -> bool:
    """Whether it can be counted on from; SQLite makes a float of an integer beyond 64 bits."""
    return isinstance(value, int) and 0 <= value < 1 << 62


def _clear_fused_with(db: sqlite3.Connection, chunk_ids: Iterable[str]) -> None:
    """Clear every fused key that was made with one of these chunks as neighbour."""
    made_with = "(SELECT chunk_id FROM neighbours WHERE neighbour_id = ?)"
    for chunk_id in _each(chunk_ids):
        db.execute(f"UPDATE chunks SET fused_key = '' WHERE id IN {made_with}", chunk_id)
        db.execute(f"DELETE FROM neighbours WHERE chunk_id IN {made_with}", chunk_id)


def _forget_captured(db: sqlite3.Connection, column: str, values: Iterable[str]) -> None:
    """Delete the captured chunks that have one of these values."""
    db.executemany(
        f"""DELETE FROM documents WHERE captured AND (scope, id) IN
        (SELECT scope, document_id FROM chunks WHERE captured AND {column} = ?)""",
        _each(values),
    )


def _write_vectors(db: sqlite3.Connection, vectors: Mapping[str, Sequence[float]]) -> None:
    rows = [(chunk_id, _from_vector(vector)) for chunk_id, vector in vectors.items()]
    db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)


def _raise_revision(db: sqlite3.Connection, searchable: bool) -> None:
    """searchable: whether what an index holds has changed, not only what is known."""
    db.execute("UPDATE store SET texts = texts + 1, revision = revision + ?", (searchable,))


def _each(values: Iterable[str]) -> list[tuple[str]]:
    return [(value,) for value in values]


def _to_row(record: ChunkRecord, captured: bool) -> tuple[object, ...]:
    """Values for `_WRITTEN`. Integers are little-endian int32."""
    chunk, encoded = record.chunk, record.encoded
    metadata_json(chunk.document_id, chunk.metadata)  # raises for what can't be kept
    metadata = json.dumps(dict(chunk.metadata))  # in the user's order, as prompts may show it
    bounds = [bound for pair in encoded.offsets for bound in pair]
    content = (
        chunk.id,
        int(captured),
        chunk.scope,
        chunk.document_id,
        chunk.index,
        chunk.text,
        chunk.title,
        metadata,
    )
    tokens = (
        struct.pack(f"<{len(encoded.token_ids)}i", *encoded.token_ids),
        struct.pack(f"<{len(bounds)}i", *bounds),
        record.isolated_key,
    )
    sums = _checksum(*content), _checksum(chunk.id, *tokens)
    return (*content, sums[0], *tokens, sums[1], _text_hash(chunk.text))


def _checksum(*values: object) -> bytes:
    """Of a row's values: text, integers and bytes, as SQLite gives them back."""
    digest = xxhash.xxh3_128()
    for value in values:
        content = value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")
        digest.update(f"{type(value).__name__} {len(content)}\n".encode())
        digest.update(content)
    return digest.digest()


def _text_hash(text: str) -> bytes:
    return sha256(text.encode(errors="surrogatepass")).digest()


def _from_trace(trace: ContextTrace) -> tuple[bytes, str]:
    """Its numbers as little-endian float32, one kind behind the other, and the rest as JSON."""
    numbers = (*trace.sensitivity, *trace.outside, *trace.inside, *trace.by_neighbour)
    rest = {"neighbours": trace.neighbours, "tokens": trace.neighbour_tokens}
    return struct.pack(f"<{len(numbers)}f", *numbers), json.dumps(rest)


def _to_trace(trace: bytes, traced_with: str, tokens: int) -> ContextTrace:
    numbers = struct.unpack(f"<{len(trace) // 4}f", trace)
    sensitivity, outside, inside = (numbers[i * tokens : (i + 1) * tokens] for i in range(3))
    rest = json.loads(traced_with)
    return ContextTrace(
        sensitivity=sensitivity,
        outside=outside,
        inside=inside,
        neighbours=tuple(rest["neighbours"]),
        by_neighbour=numbers[3 * tokens :],
        neighbour_tokens=rest["tokens"],
    )


def _from_vector(vector: Sequence[float]) -> bytes:
    """Little-endian float32, with zlib, which checks them: lexical ones are mostly zeros."""
    return zlib.compress(struct.pack(f"<{len(vector)}f", *vector), level=1)
