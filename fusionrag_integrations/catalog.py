"""What has been ingested, and which KV belongs to which chunk: a SQLite file.

documents ──< chunks ──< neighbours      a fused key and the chunks it was made with, in order
              chunks >── traces          what fusing showed, by the fused key: a chunk's last one

The rule that keeps stale content out: a fused key stands only while the chunk, its document
and every neighbour are as they were when the KV was made. Whatever changes one of them clears
the key in the same transaction.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from hashlib import sha256
from pathlib import Path
from threading import RLock
from typing import Any

from fusionrag_integrations.durable import FILE_MODE
from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreError,
    StoreMismatchError,
    StoreNotFoundError,
)
from fusionrag_integrations.keys import metadata_json, record_signature
from fusionrag_integrations.types import (
    Chunk,
    ChunkRecord,
    ContextTrace,
    Document,
    EncodedChunk,
    KVFormat,
)

CATALOG_FILE = "catalog.sqlite"  # its name in a store's directory
SCHEMA_VERSION = 4
BATCH = 500  # parameters of one statement; SQLite may refuse more than 999
BUSY_SECONDS = 30.0  # how long to wait for another process's transaction

_APPLICATION_ID = 0x46524147  # "FRAG": tells our files from other SQLite databases
_SCHEMA = (
    """CREATE TABLE store (
        format_version INTEGER NOT NULL, signature TEXT NOT NULL, model_source TEXT NOT NULL,
        embedding TEXT NOT NULL, chunk_tokens INTEGER NOT NULL, kv_format TEXT NOT NULL,
        salt_id TEXT NOT NULL, revision INTEGER NOT NULL, texts INTEGER NOT NULL)""",
    """CREATE TABLE documents (
        id TEXT PRIMARY KEY, content_hash TEXT NOT NULL, captured INTEGER NOT NULL)""",
    """CREATE TABLE chunks (
        id TEXT PRIMARY KEY,
        document_id TEXT NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
        position INTEGER NOT NULL, text TEXT NOT NULL, title TEXT NOT NULL, scope TEXT NOT NULL,
        metadata TEXT NOT NULL, token_ids BLOB NOT NULL, offsets BLOB NOT NULL,
        isolated_key TEXT NOT NULL, fused_key TEXT NOT NULL DEFAULT '',
        text_hash BLOB NOT NULL, captured INTEGER NOT NULL, traced_key TEXT NOT NULL DEFAULT '')""",
    """CREATE TABLE traces (
        traced_key TEXT PRIMARY KEY, trace BLOB NOT NULL, traced_with TEXT NOT NULL)
        WITHOUT ROWID""",
    "CREATE INDEX chunks_in_order ON chunks (document_id, position)",
    "CREATE INDEX chunks_by_text ON chunks (text_hash)",
    "CREATE INDEX chunks_by_key ON chunks (isolated_key)",
    """CREATE TABLE neighbours (
        chunk_id TEXT NOT NULL REFERENCES chunks (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        neighbour_id TEXT NOT NULL REFERENCES chunks (id),
        PRIMARY KEY (chunk_id, position)) WITHOUT ROWID""",
    "CREATE INDEX made_with ON neighbours (neighbour_id)",
)
_WRITTEN = """id, document_id, position, text, title, scope, metadata, token_ids, offsets,
    isolated_key, fused_key, text_hash, captured"""
_COLUMNS = _WRITTEN.replace("text_hash, captured", "captured, trace, traced_with")
_RECORDS = "chunks LEFT JOIN traces USING (traced_key)"


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store was made with; none of it can change afterwards.

    model_source: the directory or hub name that the model was loaded from. kv_format: in which
    KV is kept. salt_id: stands for the store's salt, which itself is kept nowhere.
    """

    format_version: int
    signature: str
    model_source: str
    embedding: str
    chunk_tokens: int
    kv_format: KVFormat
    salt_id: str = ""

    @property
    def record_signature(self) -> str:
        """What every KV record of the store carries, and every key depends on."""
        return record_signature(self.signature, self.kv_format, self.salt_id)


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


class Catalog:
    """The catalog of one store. Safe to use from several threads and processes.

    Everything raises `StoreError` where the file is damaged, locked for too long, or closed.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._db = connection
        self._lock = RLock()
        columns = ", ".join(field.name for field in fields(StoreInfo))
        self._info = StoreInfo(*self._rows(f"SELECT {columns} FROM store")[0])

    @classmethod
    def create(cls, path: str | Path, info: StoreInfo) -> Catalog:
        """Make an empty catalog in an existing directory.

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
                db.execute("INSERT INTO store VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0)", astuple(info))
                db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            return cls(path, db)

    @classmethod
    def open(cls, path: str | Path) -> Catalog:
        """Open the catalog of an existing store.

        Raises `StoreNotFoundError`, `StoreMismatchError` for one of another release's schema,
        and `StoreError` for a file that is no catalog.
        """
        path = Path(path).absolute()
        if not path.exists():
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

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._db.close()

    def check(self) -> None:
        """Read all of the file. Raises `StoreError` where anything is damaged."""
        found = [row[0] for row in self._rows("PRAGMA integrity_check")]
        strays = self._rows("PRAGMA foreign_key_check")
        if found != ["ok"] or strays:
            if found == ["ok"]:
                found = [f"{len(strays)} rows refer to others that are gone"]
            raise StoreError(f"The catalog {self._path} is damaged: {'; '.join(found)}")

    @property
    def info(self) -> StoreInfo:
        return self._info

    @property
    def revision(self) -> int:
        """A number that every change of documents raises, by whichever process; KV doesn't.

        Read it before the rows that it stands for: a change in between then shows next time.
        """
        return int(self._rows("SELECT revision FROM store")[0][0])

    @property
    def texts_revision(self) -> int:
        """Like `revision`, of all texts: captured ones too."""
        return int(self._rows("SELECT texts FROM store")[0][0])

    def document_hash(self, document_id: str) -> str | None:
        """The content hash that the document was put in with; None where there is none."""
        rows = self._rows("SELECT content_hash FROM documents WHERE id = ?", (document_id,))
        return rows[0][0] if rows else None

    def document_ids(self) -> list[str]:
        """Ids of all documents, ascending."""
        query = "SELECT id FROM documents WHERE NOT captured ORDER BY id"
        return [row[0] for row in self._rows(query)]

    def chunk_ids(self, document_ids: Iterable[str] | None = None) -> list[str]:
        """Ids of the chunks of these documents, or of all; each document's in its order."""
        if document_ids is None:
            query = "SELECT id FROM chunks WHERE NOT captured ORDER BY document_id, position"
            return [row[0] for row in self._rows(query)]
        query = "SELECT id FROM chunks WHERE document_id IN ({}) ORDER BY document_id, position"
        return [row[0] for row in self._rows_in(query, document_ids)]

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
        return [
            row[0] for row in self._rows("SELECT id FROM chunks ORDER BY document_id, position")
        ]

    def captured_keys(self) -> list[str]:
        """Keys of captured chunks' KV, isolated and fused."""
        query = """SELECT isolated_key FROM chunks WHERE captured
            UNION SELECT fused_key FROM chunks WHERE captured AND fused_key != ''"""
        return [row[0] for row in self._rows(query)]

    def capture(self, record: ChunkRecord) -> None:
        """Keep a text of a request: its chunk is known, and belongs to no document."""
        chunk = record.chunk
        self.replace_document(Document(chunk.document_id, scope=chunk.scope), "", [record])

    def forget_captured(self, isolated_keys: Iterable[str]) -> None:
        """Delete the captured chunks with these keys."""
        query = "SELECT document_id FROM chunks WHERE captured AND isolated_key IN ({})"
        self.delete_documents([row[0] for row in self._rows_in(query, isolated_keys)])

    def replace_document(
        self, document: Document, content_hash: str, records: Sequence[ChunkRecord]
    ) -> None:
        """Put a document and its chunks in the place of what its id named before.

        Chunks whose ids stay keep their isolated keys. Fused keys of all of the document's
        chunks are cleared, and so are those of others made with a chunk that went, or that
        moved to another scope. Fused keys in `records` are not taken over.

        Raises `InvalidInputError` for records of another document or with repeated ids.
        """
        new = {record.chunk.id: record for record in records}
        if len(new) < len(records):
            raise InvalidInputError(f"Document {document.id!r} has two chunks with the same id.")
        if any(record.chunk.document_id != document.id for record in records):
            raise InvalidInputError(f"Document {document.id!r} was given another one's chunks.")
        rows = {chunk_id: _to_row(record) for chunk_id, record in new.items()}
        with self._transaction() as db:
            query = "SELECT id, isolated_key, scope FROM chunks WHERE document_id = ?"
            old = {row[0]: row[1:] for row in db.execute(query, (document.id,))}
            kept = {
                chunk_id
                for chunk_id, record in new.items()
                if old.get(chunk_id) == (record.isolated_key, record.chunk.scope)
            }
            _clear_fused_with(db, old.keys() - kept)
            db.execute(
                """DELETE FROM neighbours
                WHERE chunk_id IN (SELECT id FROM chunks WHERE document_id = ?)""",
                (document.id,),
            )
            db.executemany("DELETE FROM chunks WHERE id = ?", _each(old.keys() - new.keys()))
            captured = any(record.captured for record in records)
            db.execute(
                """INSERT INTO documents VALUES (?, ?, ?)
                ON CONFLICT (id) DO UPDATE SET content_hash = excluded.content_hash""",
                (document.id, content_hash, captured),
            )
            db.executemany(
                f"""UPDATE chunks SET ({_WRITTEN}) = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, ?)
                WHERE id = ?""",
                [(*row, chunk_id) for chunk_id, row in rows.items() if chunk_id in old],
            )
            db.executemany(
                f"INSERT INTO chunks ({_WRITTEN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, ?)",
                [row for chunk_id, row in rows.items() if chunk_id not in old],
            )
            if not captured:
                _forget_captured(db, [record.isolated_key for record in records])
            _raise_revision(db, searchable=not captured)

    def delete_documents(self, document_ids: Iterable[str]) -> int:
        """Delete documents with their chunks, and every fused key made with one of those.

        Returns how many documents there were.
        """
        ids = list(document_ids)
        with self._transaction() as db:
            _clear_fused_with(db, self.chunk_ids(ids))
            query = "SELECT captured FROM documents WHERE id IN ({})"
            searchable = any(not captured for (captured,) in self._rows_in(query, ids))
            deleted = db.executemany("DELETE FROM documents WHERE id = ?", _each(ids)).rowcount
            if deleted:
                _raise_revision(db, searchable)
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
            query = "UPDATE chunks SET fused_key = ?1, traced_key = ?1 WHERE id = ?2"
            db.execute(query, (fused_key, chunk_id))
            if trace is not None:
                query = "INSERT OR REPLACE INTO traces VALUES (?, ?, ?)"
                db.execute(query, (fused_key, *_from_trace(trace)))
            db.execute("DELETE FROM neighbours WHERE chunk_id = ?", (chunk_id,))
            db.executemany(
                "INSERT INTO neighbours VALUES (?, ?, ?)",
                [(chunk_id, i, neighbour) for i, neighbour in enumerate(neighbour_ids)],
            )
        return True

    def forget_traces(self) -> None:
        """Delete the traces that are no chunk's last one any more."""
        with self._transaction() as db:
            keys = "(SELECT traced_key FROM chunks)"
            db.execute(f"DELETE FROM traces WHERE traced_key NOT IN {keys}")

    def traced_keys(self) -> set[str]:
        """Fused keys of the KV whose traces are known."""
        return {row[0] for row in self._rows("SELECT traced_key FROM traces")}

    def record(self, chunk_id: str) -> ChunkRecord | None:
        """What is known of a chunk; None where there is no such chunk."""
        return self.records([chunk_id]).get(chunk_id)

    def records(self, chunk_ids: Iterable[str]) -> dict[str, ChunkRecord]:
        """Records by chunk id, in the order asked for; unknown ids are left out."""
        ids = list(chunk_ids)
        rows = self._rows_in(f"SELECT {_COLUMNS} FROM {_RECORDS} WHERE id IN ({{}})", ids)
        found = {row[0]: _to_record(row) for row in rows}
        return {chunk_id: found[chunk_id] for chunk_id in ids if chunk_id in found}

    def scoped_texts(self, chunk_ids: Iterable[str]) -> list[tuple[str, str, str]]:
        """Chunk id, scope and text of these chunks, in any order; unknown ids are left out."""
        return self._rows_in("SELECT id, scope, text FROM chunks WHERE id IN ({})", chunk_ids)

    def with_text(self, text: str) -> list[ChunkRecord]:
        """Records of the chunks that have this text, by document and index."""
        query = f"""SELECT {_COLUMNS} FROM {_RECORDS} WHERE text_hash = ?
            ORDER BY document_id, position"""
        return [_to_record(row) for row in self._rows(query, (_text_hash(text),))]

    def kv_keys(self) -> list[tuple[str, str, str]]:
        """Chunk id, isolated key and fused key of all chunks, by document and index."""
        query = """SELECT id, isolated_key, fused_key FROM chunks WHERE NOT captured
            ORDER BY document_id, position"""
        return self._rows(query)

    def unfused(self) -> list[str]:
        """Ids of the chunks without fused KV, by document and index."""
        query = """SELECT id FROM chunks WHERE fused_key = '' AND NOT captured
            ORDER BY document_id, position"""
        return [row[0] for row in self._rows(query)]

    def predecessors(self, chunk_id: str, count: int) -> list[ChunkRecord]:
        """The `count` chunks right before this one in its document, in document order."""
        rows = self._rows(
            f"""SELECT {_COLUMNS} FROM {_RECORDS}
            WHERE document_id = (SELECT document_id FROM chunks WHERE id = ?1)
            AND position < (SELECT position FROM chunks WHERE id = ?1)
            ORDER BY position DESC LIMIT ?2""",
            (chunk_id, count),
        )
        return [_to_record(row) for row in reversed(rows)]

    def neighbours(self, chunk_id: str) -> tuple[str, ...]:
        """Ids of the chunks that its fused KV was made behind, in order."""
        query = "SELECT neighbour_id FROM neighbours WHERE chunk_id = ? ORDER BY position"
        return tuple(row[0] for row in self._rows(query, (chunk_id,)))

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

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _named_errors(self._path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    def _rows(self, query: str, parameters: Sequence[object] = ()) -> list[Any]:
        with self._lock, _named_errors(self._path):
            return self._db.execute(query, parameters).fetchall()

    def _rows_in(self, query: str, values: Iterable[str], *parameters: str) -> list[Any]:
        """Rows of a query with `IN ({})`, asked in batches; `parameters` come behind the list."""
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
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA synchronous = FULL")
            yield db
        except BaseException:
            db.close()
            raise


def _kind(db: sqlite3.Connection) -> tuple[int, int, int]:
    """Number of tables, application id and schema version; all 0 in an empty file."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return tables, application_id, version


def _clear_fused_with(db: sqlite3.Connection, chunk_ids: Iterable[str]) -> None:
    """Clear every fused key that was made with one of these chunks as neighbour."""
    made_with = "(SELECT chunk_id FROM neighbours WHERE neighbour_id = ?)"
    for chunk_id in _each(chunk_ids):
        db.execute(f"UPDATE chunks SET fused_key = '' WHERE id IN {made_with}", chunk_id)
        db.execute(f"DELETE FROM neighbours WHERE chunk_id IN {made_with}", chunk_id)


def _forget_captured(db: sqlite3.Connection, isolated_keys: Iterable[str]) -> None:
    """Delete what was captured of texts that are ingested now, and would be ambiguous."""
    db.executemany(
        """DELETE FROM documents WHERE captured
        AND id IN (SELECT document_id FROM chunks WHERE isolated_key = ?)""",
        _each(isolated_keys),
    )


def _raise_revision(db: sqlite3.Connection, searchable: bool) -> None:
    """searchable: whether what an index holds has changed, not only what is known."""
    db.execute("UPDATE store SET texts = texts + 1, revision = revision + ?", (searchable,))


def _each(values: Iterable[str]) -> list[tuple[str]]:
    return [(value,) for value in values]


def _to_row(record: ChunkRecord) -> tuple[object, ...]:
    """Values for `_WRITTEN` without the fused key. Integers are little-endian int32."""
    chunk, encoded = record.chunk, record.encoded
    metadata_json(chunk.document_id, chunk.metadata)  # raises for what can't be kept
    metadata = json.dumps(dict(chunk.metadata))  # in the user's order, as prompts may show it
    bounds = [bound for pair in encoded.offsets for bound in pair]
    return (
        chunk.id,
        chunk.document_id,
        chunk.index,
        chunk.text,
        chunk.title,
        chunk.scope,
        metadata,
        struct.pack(f"<{len(encoded.token_ids)}i", *encoded.token_ids),
        struct.pack(f"<{len(bounds)}i", *bounds),
        record.isolated_key,
        _text_hash(chunk.text),
        record.captured,
    )


def _text_hash(text: str) -> bytes:
    return sha256(text.encode(errors="surrogatepass")).digest()


def _to_record(row: tuple[Any, ...]) -> ChunkRecord:
    chunk_id, document_id, index, text, title, scope, metadata, *rest = row
    token_ids, offsets, isolated_key, fused_key, captured, trace, traced_with = rest
    ids = struct.unpack(f"<{len(token_ids) // 4}i", token_ids)
    bounds = struct.unpack(f"<{len(offsets) // 4}i", offsets)
    chunk = Chunk(chunk_id, document_id, index, text, title, scope, json.loads(metadata))
    encoded = EncodedChunk(chunk, ids, tuple(zip(bounds[::2], bounds[1::2], strict=True)))
    known = _to_trace(trace, traced_with, len(ids))
    return ChunkRecord(encoded, isolated_key, fused_key, known, bool(captured))


def _from_trace(trace: ContextTrace) -> tuple[bytes, str]:
    """Its numbers as little-endian float32, one kind behind the other, and the rest as JSON."""
    numbers = (*trace.sensitivity, *trace.outside, *trace.inside, *trace.by_neighbour)
    rest = {"neighbours": trace.neighbours, "tokens": trace.neighbour_tokens}
    return struct.pack(f"<{len(numbers)}f", *numbers), json.dumps(rest)


def _to_trace(trace: bytes | None, traced_with: str | None, tokens: int) -> ContextTrace | None:
    if trace is None or traced_with is None:
        return None
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
