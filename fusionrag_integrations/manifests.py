"""What the catalog holds, once more as one file a document, from which it can be rebuilt.

<store>/store.json                  what the store was made with; a copy lies in documents/
<store>/documents/ab/abcd....json   a document with its chunks and links, named by a hash of its key
<store>/documents/deleted/          documents that are being deleted
<store>/documents/revision.json     which revision of which store's catalog they are of, at least

A manifest is written before the catalog changes, so after a crash it is of the document as it was
or as it was to be. One that is deleted moves aside before the catalog forgets it, and goes after:
a delete that was cut short is finished by whoever changes the store next. A catalog that is older
than the files say, one that was put back from a copy say, is not believed, nor is another store's.
"""

from __future__ import annotations

import json
import os
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from fusionrag_integrations.catalog import StoreInfo
from fusionrag_integrations.durable import (
    make_directory,
    move_file,
    read_file,
    remove_file,
    sweep,
    write_file,
)
from fusionrag_integrations.errors import InvalidInputError, StoreError
from fusionrag_integrations.keys import document_name, isolated_key
from fusionrag_integrations.types import (
    Chunk,
    ChunkRecord,
    ContextTrace,
    DocumentKey,
    EncodedChunk,
)

FORMAT = "fusionrag-document"
VERSION = 2
MAX_BYTES = 1 << 30
INFO_FILE = "store.json"
DIRECTORY = "documents"


@dataclass(frozen=True, slots=True)
class Noted:
    """How far a store's catalog had come, at least."""

    store_id: str
    revision: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A document as the catalog knows it.

    neighbours: of each record's fused KV, by chunk id. vectors: of its chunks, by chunk id.
    """

    document: DocumentKey
    content_hash: str
    records: tuple[ChunkRecord, ...]
    neighbours: tuple[tuple[str, ...], ...]
    vectors: Mapping[str, Sequence[float]]

    def says(self, other: Manifest) -> bool:
        """Whether two are of the same chunks and tokens, whatever is fused."""
        return [*map(_core, self.records)] == [*map(_core, other.records)]

    def is_of(self, signature: str) -> bool:
        """Whether its keys are those of its tokens. signature: the store's records'."""
        return all(
            isolated_key(record.encoded.token_ids, signature, self.document.scope)
            == record.isolated_key
            for record in self.records
        )


def _core(record: ChunkRecord) -> tuple[object, ...]:
    """A chunk's id stands for all that the chunk says."""
    encoded = record.encoded
    return (
        record.chunk.id,
        record.chunk.index,
        encoded.token_ids,
        encoded.offsets,
        record.isolated_key,
    )


class Manifests:
    """The manifests of one store."""

    def __init__(self, store: Path) -> None:
        self.info_path = store / INFO_FILE
        self._directory = store / DIRECTORY
        self._info_copy = self._directory / INFO_FILE
        self.revision_path = self._directory / "revision.json"
        self._deleted = self._directory / "deleted"
        self._drafts = self._directory / "tmp"
        sweep(self._drafts)

    def note_info(self, info: StoreInfo) -> None:
        """Note what the store was made with, in each place where nothing stands.

        Raises `StoreError`.
        """
        for path in (self.info_path, self._info_copy):
            if not path.exists():
                self._write(path, asdict(info), sync=True)

    def info(self) -> StoreInfo:
        """What the store was made with, by store.json. Raises `StoreError`."""
        return _info(self.info_path)

    def infos(self) -> list[tuple[Path, Callable[[], StoreInfo]]]:
        """Where that is noted, with what reads it; the copy only where there is one."""
        paths = [self.info_path]
        if os.path.lexists(self._info_copy):
            paths.append(self._info_copy)
        return [(path, partial(_info, path)) for path in paths]

    def readable_infos(self) -> list[StoreInfo]:
        """What can be read of that, store.json first."""
        found: list[StoreInfo] = []
        for _, read in self.infos():
            with suppress(StoreError):
                found.append(read())
        return found

    def info_of_documents(self, others: Iterable[StoreInfo] = ()) -> StoreInfo:
        """What most of the documents were made with, of what the files say, and others.

        Raises `StoreError` where nothing says it, or no document was made so.
        """
        infos = [*self.readable_infos(), *others]
        if not infos:
            return self.info()  # which raises
        noted, documents = self.noted(), self.unknown([])

        def fits(info: StoreInfo) -> tuple[int, bool]:
            is_noted = noted is not None and noted.store_id == info.store_id
            return sum(document.is_of(info.record_signature) for document in documents), is_noted

        best = max(infos, key=fits)
        if documents and not fits(best)[0]:
            raise StoreError(
                f"No document in {self._directory} is of the store that {self.info_path} tells "
                "of: they were made by another model, format or salt. Put their own store.json "
                "back."
            )
        return best

    def store_ids(self) -> list[str]:
        """The store's id, once for each of store.json, its copy and revision.json that says one."""
        found = [info.store_id for info in self.readable_infos()]
        noted = self.noted()
        return found if noted is None else [*found, noted.store_id]

    def note_revision(self, revision: int, store_id: str) -> None:
        """Note that the catalog of a store has reached a revision. Raises `StoreError`."""
        self._write(self.revision_path, asdict(Noted(store_id, revision)), sync=False)

    def noted(self) -> Noted | None:
        """How far the catalog had come, at least; None where nothing says."""
        try:
            return self.check_noted()
        except StoreError:
            return None  # it isn't waited for until it is on the disk

    def check_noted(self) -> Noted | None:
        """The same. Raises `StoreError` where something stands there that doesn't say it."""
        if not os.path.lexists(self.revision_path):
            return None
        try:
            said = _read(self.revision_path)
            return Noted(str(said["store_id"]), int(said["revision"]))
        except (LookupError, TypeError, ValueError) as error:
            raise StoreError(f"{self.revision_path} is damaged: {error!r}") from error

    def write(self, manifest: Manifest) -> None:
        """Put a document in the place of what its id named before. Raises `StoreError`.

        It isn't waited for until it is on the disk: the catalog is, which it repeats.
        """
        self._write(
            self.path_of(manifest.document),
            {
                "id": manifest.document.id,
                "scope": manifest.document.scope,
                "content_hash": manifest.content_hash,
                "chunks": [
                    _to_json(record, neighbours)
                    | {"vector": _packed(manifest.vectors.get(record.chunk.id))}
                    for record, neighbours in zip(
                        manifest.records, manifest.neighbours, strict=True
                    )
                ],
            },
            sync=False,
        )

    def begin_delete(self, document: DocumentKey) -> None:
        """Move a document's file to those that go; nothing happens where there is none.

        What `repair` has put aside of it goes first. Raises `StoreError`.
        """
        path = self.path_of(document)
        self.forget_aside(document)
        try:
            make_directory(self._deleted)
            move_file(path, self._deleted / path.name)
        except OSError as error:
            raise StoreError(f"Can't delete {path}: {error}") from error

    def forget_aside(self, document: DocumentKey) -> None:
        """Remove what `repair` has put aside of a document: text of it. Raises `StoreError`."""
        aside = aside_of(self.path_of(document))
        if aside.is_file() or aside.is_symlink():
            _remove(aside)

    def finish_deletes(self) -> None:
        """Remove all that `begin_delete` moved. Raises `StoreError`."""
        for path in self._deleted.glob("*.json"):
            _remove(path)

    def deleting(self) -> bool:
        """Whether a deletion has begun, and isn't finished."""
        return any(self._deleted.glob("*.json"))

    def deleted(self, documents: Iterable[DocumentKey]) -> list[DocumentKey]:
        """Those of some documents whose deletion has begun, and isn't finished."""
        left = {path.name for path in self._deleted.glob("*.json")}
        return [key for key in documents if self.path_of(key).name in left] if left else []

    def any(self) -> bool:
        """Whether there is anything from which a store could be told."""
        return self.info_path.exists() or self._info_copy.exists() or any(self.paths())

    def paths(self) -> list[Path]:
        """The files of all documents, ascending."""
        found = sorted(self._directory.glob("[0-9a-f][0-9a-f]/*.json"))
        return [path for path in found if not path.parent.is_symlink()]

    def read(self, path: Path, signature: str | None = None) -> Manifest:
        """The document in one of `paths()`. Raises `StoreError`, naming the file.

        signature: the store's records'. A document whose keys aren't made with it is refused: its
        tokens are another model's.
        """
        content = _read(path)
        try:
            document = DocumentKey(content["id"], content["scope"])
            pairs = [_from_json(document, chunk) for chunk in content["chunks"]]
            manifest = Manifest(
                document,
                content["content_hash"],
                tuple(record for record, _ in pairs),
                tuple(neighbours for _, neighbours in pairs),
                {c["id"]: _unpacked(c["vector"]) for c in content["chunks"] if c["vector"]},
            )
        except (LookupError, TypeError, ValueError, struct.error) as error:
            raise StoreError(f"{path} is damaged: {error!r}") from error
        if path != self.path_of(document):
            raise StoreError(f"{path} is of another document, {document.id!r}.")
        if signature is not None and not manifest.is_of(signature):
            raise StoreError(f"{path} is of another store: its tokens and keys aren't this one's.")
        return manifest

    def unknown(self, known: Iterable[DocumentKey], signature: str | None = None) -> list[Manifest]:
        """The documents that can be read and are not among those that are known.

        signature: as in `read`.
        """
        paths = {self.path_of(key) for key in known}
        found: list[Manifest] = []
        for path in self.paths():
            if path not in paths:
                with suppress(StoreError):  # named where the documents are checked
                    found.append(self.read(path, signature))
        return found

    def path_of(self, document: DocumentKey) -> Path:
        """Where a document's file lies."""
        name = document_name(document.scope, document.id)
        return self._directory / name[:2] / f"{name}.json"

    def _write(self, path: Path, content: dict[str, Any], sync: bool) -> None:
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        head = {"format": FORMAT, "version": VERSION, "xxh3_64": xxhash.xxh3_64_hexdigest(body)}
        try:
            write_file(path, [json.dumps(head).encode() + b"\n", body], self._drafts, sync=sync)
        except OSError as error:
            raise StoreError(f"Can't write {path}: {error}") from error


def aside_of(path: Path) -> Path:
    """Where `repair` puts what is damaged, and may be the only copy of something."""
    return path.with_name(f"{path.name}.damaged")


def _remove(path: Path) -> None:
    try:
        remove_file(path)
    except OSError as error:
        raise StoreError(f"Can't delete {path}: {error}") from error


def _read(path: Path) -> Any:
    """What was written to a file, if all of it is there."""
    try:
        head, _, body = read_file(path, MAX_BYTES).partition(b"\n")
        said = json.loads(head)
        if (said["format"], said["version"]) != (FORMAT, VERSION):
            raise StoreError(
                f"{path} has version {said['version']!r} of the format {said['format']!r}; this "
                f"release reads version {VERSION} of {FORMAT!r}."
            )
        if said["xxh3_64"] != xxhash.xxh3_64_hexdigest(body):
            raise StoreError(f"{path} is damaged: its content doesn't match its checksum.")
        return json.loads(body)
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {error!r}") from error


def _info(path: Path) -> StoreInfo:
    try:
        return StoreInfo(**_read(path))
    except (TypeError, InvalidInputError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error


def _to_json(record: ChunkRecord, neighbours: Sequence[str]) -> dict[str, Any]:
    chunk, encoded = record.chunk, record.encoded
    return {
        "id": chunk.id,
        "index": chunk.index,
        "text": chunk.text,
        "title": chunk.title,
        "metadata": dict(chunk.metadata),
        "token_ids": encoded.token_ids,
        "offsets": encoded.offsets,
        "isolated_key": record.isolated_key,
        "fused_key": record.fused_key,
        "neighbours": list(neighbours),
        "trace": None if record.trace is None else asdict(record.trace),
    }


def _from_json(document: DocumentKey, said: dict[str, Any]) -> tuple[ChunkRecord, tuple[str, ...]]:
    text = {name: said[name] for name in ("index", "text", "title", "metadata")}
    chunk = Chunk(said["id"], document.id, scope=document.scope, **text)
    offsets = tuple((start, stop) for start, stop in said["offsets"])
    encoded = EncodedChunk(chunk, tuple(said["token_ids"]), offsets)
    trace = None if said["trace"] is None else _trace(**said["trace"])
    record = ChunkRecord(encoded, said["isolated_key"], said["fused_key"], trace)
    return record, tuple(said["neighbours"])


def _trace(neighbour_tokens: int, **numbers: list[Any]) -> ContextTrace:
    return ContextTrace(
        neighbour_tokens=neighbour_tokens, **{name: tuple(v) for name, v in numbers.items()}
    )


def _packed(vector: Sequence[float] | None) -> str:
    """float32, little-endian, in base64; empty where there is none."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if vector else ""


def _unpacked(said: str) -> list[float]:
    numbers = b64decode(said, validate=True)
    return [number for (number,) in struct.iter_unpack("<f", numbers)]
