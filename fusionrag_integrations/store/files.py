"""KV records as files: one checksummed safetensors file a record (docs/kv_format.md).

<directory>/ab/abcd....safetensors   the record with the key abcd...
<directory>/tmp/                     files being written, renamed into place when complete

A file is read whole, never memory-mapped: truncating a mapped file kills its reader.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from os import fsync
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import safetensors.torch
import torch
import xxhash

from fusionrag_integrations.errors import (
    InvalidInputError,
    KVCorruptError,
    KVForeignError,
    KVMissingError,
    KVRecordError,
    StoreError,
)
from fusionrag_integrations.types import ChunkKV, KVKind

FORMAT = "fusionrag-kv"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"
MAX_HEADER_BYTES = 1 << 20
STALE_SECONDS = 3600  # no write takes this long, so an older temporary file has no writer

_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
_ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
_METADATA = {"checksum", "format", "format_version", "key", "kind", "neighbours", "signature"}
_KEY = re.compile(r"[0-9a-f]{2,128}")
_SHARD = re.compile(r"[0-9a-f]{2}")

Header = dict[str, dict[str, Any]]


class FileKVStore:
    """KV records in a directory, which is made with the first record.

    signature: of the model that the records are for; those of another model are foreign.
    """

    def __init__(self, directory: Path, signature: str) -> None:
        self._directory = Path(directory)
        self._signature = signature
        self._temporary = self._directory / "tmp"
        self._remove_stale_temporaries()

    def get(self, key: str) -> ChunkKV:
        """The record as CPU tensors, whole and checked.

        Raises `KVMissingError`, `KVCorruptError` or `KVForeignError`, naming the file.
        """
        path = self._path(key)
        return _decode(_read(path), path, key, self._signature)

    def put(self, record: ChunkKV) -> None:
        """Write a record in the place of one that is there; a reader sees the old or the new.

        Raises `InvalidInputError` for KV that the format can't hold, `StoreError` where the
        file can't be written.
        """
        path = self._path(record.key)
        parts = _encode(record, self._signature)
        temporary = self._temporary / f"{record.key}.{uuid4().hex}"
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(exist_ok=True)
            with temporary.open("xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise StoreError(f"Can't write the KV record {path}: {error}") from error
        finally:
            with suppress(OSError):  # gone after the rename, of no use after a failure
                temporary.unlink()

    def contains(self, key: str) -> bool:
        """Whether there is a file for this key; `get` may still find it damaged."""
        return self._path(key).is_file()

    def delete(self, key: str) -> None:
        """Remove a record; nothing happens where there is none."""
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"Can't delete the KV record {path}: {error}") from error

    def keys(self) -> Iterator[str]:
        """The keys of all records, ascending; other files are passed over."""
        for path in self.paths():
            if self._is_record(path) and path.is_file():
                yield path.name.removesuffix(SUFFIX)

    def size_bytes(self) -> int:
        """Bytes that all records take."""
        return sum(path.stat().st_size for path in map(self._path, self.keys()))

    def paths(self) -> list[Path]:
        """Everything in the store's directory that is, or should be, a record; ascending."""
        if not self._directory.is_dir():
            return []
        found: list[Path] = []
        for entry in self._directory.iterdir():
            if entry.is_dir() and _SHARD.fullmatch(entry.name):
                found.extend(entry.iterdir())
            elif entry != self._temporary:
                found.append(entry)
        return sorted(found)

    def check(self, path: Path) -> None:
        """Read one of `paths()`. Raises as `get` does, and `KVForeignError` for a wrong name."""
        if not self._is_record(path):
            raise KVForeignError(
                f"{path} isn't named like a KV record, which is ab/abcd...{SUFFIX}"
            )
        self.get(path.name.removesuffix(SUFFIX))

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise InvalidInputError(f"{key!r} is no key of a KV record; keys are lower-case hex.")
        return self._directory / key[:2] / f"{key}{SUFFIX}"

    def _is_record(self, path: Path) -> bool:
        key = path.name.removesuffix(SUFFIX)
        return _KEY.fullmatch(key) is not None and path == self._path(key)

    def _remove_stale_temporaries(self) -> None:
        with suppress(OSError):  # none, or not ours to delete: neither hinders reading
            for path in self._temporary.iterdir():
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()


@dataclass(frozen=True, slots=True)
class RecordProblem:
    """A file that isn't a usable record, and why."""

    path: Path
    error: KVRecordError


def verify(
    store: FileKVStore, progress: Callable[[int, int], object] = lambda done, total: None
) -> Iterator[RecordProblem]:
    """Read every record and yield the bad ones; progress: called with files done and in all."""
    paths = store.paths()
    for done, path in enumerate(paths, start=1):
        try:
            store.check(path)
        except KVMissingError:
            pass  # deleted since it was listed
        except KVRecordError as error:
            yield RecordProblem(path, error)
        progress(done, len(paths))


def _encode(record: ChunkKV, signature: str) -> list[bytes | memoryview]:
    """The file's parts: length and header, then each tensor's bytes."""
    if record.keys.dtype not in _DTYPES or record.keys.dtype != record.values.dtype:
        raise InvalidInputError(
            f"KV {record.key} has keys in {record.keys.dtype} and values in "
            f"{record.values.dtype}; both must have the same one of {', '.join(map(str, _DTYPES))}."
        )
    if record.rotated:
        raise InvalidInputError(f"KV {record.key} is rotated; what is stored is unrotated.")
    if record.keys.numel() == 0:
        raise InvalidInputError(f"KV {record.key} is empty: {tuple(record.keys.shape)}.")
    for neighbour in record.neighbours:
        if not _KEY.fullmatch(neighbour):
            raise InvalidInputError(f"Neighbour {neighbour!r} of KV {record.key} is no key.")
    token_ids = torch.tensor(record.token_ids, dtype=torch.int32)
    data = [_bytes_of(tensor) for tensor in (record.keys, record.values, token_ids)]
    header = _tensor_entries(_DTYPES[record.keys.dtype], list(record.keys.shape))
    header["__metadata__"] = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "key": record.key,
        "kind": record.kind,
        "neighbours": ",".join(record.neighbours),
        "signature": signature,
    }
    header["__metadata__"]["checksum"] = _checksum(header, *data)
    return [_header_bytes(header), *data]


def _decode(content: bytes, path: Path, key: str, signature: str) -> ChunkKV:
    header, data = _split(content, path)
    metadata = header["__metadata__"]
    if _checksum(header, data) != metadata["checksum"]:
        raise KVCorruptError(f"{path} is damaged: its content doesn't match its checksum.")
    if metadata.get("format") != FORMAT or "format_version" not in metadata:
        raise KVCorruptError(f"{path} isn't a KV record: its format is {metadata.get('format')!r}.")
    if metadata["format_version"] != str(FORMAT_VERSION):
        raise KVForeignError(
            f"{path} has format version {metadata['format_version']!r}; "
            f"this release reads version {FORMAT_VERSION}. Ingest its documents again."
        )
    if not _is_our_layout(header, len(data)):
        raise KVCorruptError(f"{path} isn't a KV record: its tensors or metadata are others.")
    if metadata["key"] != key:
        raise KVForeignError(f"{path} holds the record of another key, {metadata['key']}.")
    if metadata["signature"] != signature:
        raise KVForeignError(
            f"{path} was made by another model: its signature is {metadata['signature']}, "
            f"not {signature}. Ingest its documents again with this model."
        )
    tensors = safetensors.torch.load(content)
    return ChunkKV(
        key=key,
        kind=metadata["kind"],
        token_ids=tuple(tensors["token_ids"].tolist()),
        keys=tensors["keys"],
        values=tensors["values"],
        neighbours=tuple(metadata["neighbours"].split(",")) if metadata["neighbours"] else (),
    )


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise KVCorruptError(f"{path} is damaged: it isn't a regular file.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise KVMissingError(f"There is no KV record {path}.") from error
    except OSError as error:
        raise KVCorruptError(f"{path} can't be read: {error}") from error


def _split(content: bytes, path: Path) -> tuple[Header, memoryview]:
    """Header and data of a file whose header is written exactly as we write it."""
    length = int.from_bytes(content[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(content) - 8):
        raise KVCorruptError(f"{path} is damaged: it has no header of a length in bounds.")
    stop = 8 + length
    try:
        header: Header = json.loads(content[8:stop])
        header["__metadata__"]["checksum"]
        canonical = _header_bytes(header) == content[:stop]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise KVCorruptError(f"{path} is damaged: its header can't be read: {error!r}") from error
    if not canonical:
        raise KVCorruptError(f"{path} is damaged: its header isn't in canonical form.")
    return header, memoryview(content)[stop:]


def _is_our_layout(header: Header, data_bytes: int) -> bool:
    """Whether tensors and metadata are those of a record, given the dtype and shape of `keys`."""
    try:
        metadata, keys = header["__metadata__"], header["keys"]
        dtype, shape = keys["dtype"], keys["shape"]
        return (
            all(type(size) is int and size > 0 for size in shape)
            and header == {"__metadata__": metadata, **_tensor_entries(dtype, shape)}
            and header["token_ids"]["data_offsets"][1] == data_bytes
            and metadata.keys() == _METADATA
            and all(isinstance(value, str) for value in metadata.values())
            and metadata["kind"] in get_args(KVKind)
        )
    except (LookupError, TypeError, ValueError):
        return False


def _tensor_entries(dtype: str, shape: list[int]) -> Header:
    """The header's entries: keys, values [L, Hkv, T, D], then token ids [T]."""
    layers, heads, tokens, size = shape
    kv = layers * heads * tokens * size * _ITEM_BYTES[dtype]
    end = 2 * kv + 4 * tokens
    return {
        "keys": {"dtype": dtype, "shape": shape, "data_offsets": [0, kv]},
        "values": {"dtype": dtype, "shape": shape, "data_offsets": [kv, 2 * kv]},
        "token_ids": {"dtype": "I32", "shape": [tokens], "data_offsets": [2 * kv, end]},
    }


def _header_bytes(header: Header) -> bytes:
    """Length and header in canonical form, padded so that the data starts at a multiple of 8."""
    text = _canonical(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _checksum(header: Header, *data: bytes | memoryview) -> str:
    """xxh3_64 of the canonical header without its checksum, then the data, in 16 hex digits."""
    metadata = {k: v for k, v in header["__metadata__"].items() if k != "checksum"}
    digest = xxhash.xxh3_64(_canonical({**header, "__metadata__": metadata}))
    for part in data:
        digest.update(part)
    return digest.hexdigest()


def _canonical(header: Header) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().flatten()
    return flat.view(torch.uint8).numpy().data
