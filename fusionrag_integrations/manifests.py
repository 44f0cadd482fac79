"""What the catalog holds, once more as one file a document, from which it can be rebuilt.

<store>/store.json                what the store was made with
<store>/documents/ab/abcd....json a document with its chunks and links; the name is a hash of its id

A manifest is written before the catalog changes and removed before it forgets, so after a crash it
is of the document as it was or as it was to be. The catalog stays the truth while it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import xxhash

from fusionrag_integrations.catalog import StoreInfo
from fusionrag_integrations.durable import read_file, remove_file, sweep, write_file
from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.types import Chunk, ChunkRecord, ContextTrace, EncodedChunk

FORMAT = "fusionrag-document"
VERSION = 1
MAX_BYTES = 1 << 30
INFO_FILE = "store.json"
DIRECTORY = "documents"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A document as the catalog knows it. neighbours: of each record's fused KV, by chunk id."""

    document_id: str
    content_hash: str
    records: tuple[ChunkRecord, ...]
    neighbours: tuple[tuple[str, ...], ...]


class Manifests:
    """The manifests of one store."""

    def __init__(self, store: Path) -> None:
        self.info_path = store / INFO_FILE
        self._directory = store / DIRECTORY
        self._drafts = self._directory / "tmp"
        sweep(self._drafts)

    def write_info(self, info: StoreInfo) -> None:
        """Note what the store was made with. Raises `StoreError`."""
        self._write(self.info_path, asdict(info), sync=True)

    def info(self) -> StoreInfo:
        """What the store was made with. Raises `StoreError`."""
        try:
            return StoreInfo(**_read(self.info_path))
        except TypeError as error:
            raise StoreError(f"{self.info_path} is damaged: {error}") from error

    def write(self, manifest: Manifest) -> None:
        """Put a document in the place of what its id named before. Raises `StoreError`.

        It isn't waited for until it is on the disk: the catalog is, which it repeats.
        """
        self._write(
            self.path_of(manifest.document_id),
            {
                "id": manifest.document_id,
                "content_hash": manifest.content_hash,
                "chunks": [
                    _to_json(record, neighbours)
                    for record, neighbours in zip(
                        manifest.records, manifest.neighbours, strict=True
                    )
                ],
            },
            sync=False,
        )

    def remove(self, document_id: str) -> None:
        """Remove a document; nothing happens where there is none. Raises `StoreError`."""
        path = self.path_of(document_id)
        try:
            remove_file(path)
        except OSError as error:
            raise StoreError(f"Can't delete {path}: {error}") from error

    def paths(self) -> list[Path]:
        """The files of all documents, ascending."""
        found = sorted(self._directory.glob("[0-9a-f][0-9a-f]/*.json"))
        return [path for path in found if not path.parent.is_symlink()]

    def read(self, path: Path) -> Manifest:
        """The document in one of `paths()`. Raises `StoreError`, naming the file."""
        content = _read(path)
        try:
            document_id = content["id"]
            pairs = [_from_json(document_id, chunk) for chunk in content["chunks"]]
            manifest = Manifest(
                document_id,
                content["content_hash"],
                tuple(record for record, _ in pairs),
                tuple(neighbours for _, neighbours in pairs),
            )
        except (LookupError, TypeError, ValueError) as error:
            raise StoreError(f"{path} is damaged: {error!r}") from error
        if path != self.path_of(document_id):
            raise StoreError(f"{path} is of another document, {document_id!r}.")
        return manifest

    def path_of(self, document_id: str) -> Path:
        """Where a document's file lies."""
        name = sha256(document_id.encode(errors="surrogatepass")).hexdigest()
        return self._directory / name[:2] / f"{name}.json"

    def _write(self, path: Path, content: dict[str, Any], sync: bool) -> None:
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        head = {"format": FORMAT, "version": VERSION, "xxh3_64": xxhash.xxh3_64_hexdigest(body)}
        try:
            write_file(path, [json.dumps(head).encode() + b"\n", body], self._drafts, sync=sync)
        except OSError as error:
            raise StoreError(f"Can't write {path}: {error}") from error


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


def _to_json(record: ChunkRecord, neighbours: Sequence[str]) -> dict[str, Any]:
    chunk, encoded = record.chunk, record.encoded
    return {
        "id": chunk.id,
        "index": chunk.index,
        "text": chunk.text,
        "title": chunk.title,
        "scope": chunk.scope,
        "metadata": dict(chunk.metadata),
        "token_ids": encoded.token_ids,
        "offsets": encoded.offsets,
        "isolated_key": record.isolated_key,
        "fused_key": record.fused_key,
        "neighbours": list(neighbours),
        "trace": None if record.trace is None else asdict(record.trace),
    }


def _from_json(document_id: str, said: dict[str, Any]) -> tuple[ChunkRecord, tuple[str, ...]]:
    text = {name: said[name] for name in ("index", "text", "title", "scope", "metadata")}
    chunk = Chunk(said["id"], document_id, **text)
    offsets = tuple((start, stop) for start, stop in said["offsets"])
    encoded = EncodedChunk(chunk, tuple(said["token_ids"]), offsets)
    trace = None if said["trace"] is None else _trace(**said["trace"])
    record = ChunkRecord(encoded, said["isolated_key"], said["fused_key"], trace)
    return record, tuple(said["neighbours"])


def _trace(neighbour_tokens: int, **numbers: list[Any]) -> ContextTrace:
    return ContextTrace(
        neighbour_tokens=neighbour_tokens, **{name: tuple(v) for name, v in numbers.items()}
    )
