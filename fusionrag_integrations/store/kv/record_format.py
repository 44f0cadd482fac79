"""The layout of a record's file, without torch: docs/kv_format.md describes it.

    length | header, padded | token ids | small tensors | keys | values
                            ^ offsets count from here

Every tensor but the token ids has the layers as its first axis, and every layer has its own digest,
so that layers can be read one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any, get_args

import xxhash

from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.errors import KVCorruptError, KVForeignError
from fusionrag_integrations.store.kv.types import KVFormat

FORMAT = "fusionrag-kv"
FORMAT_VERSION = 2
MAX_HEADER_BYTES = 1 << 20
MAX_RECORD_BYTES = 1 << 33  # far more than a chunk's KV; larger files are refused unread
FIRST_TOKENS = 4  # of a chunk, kept in 16 bits when quantised, since they get much attention
_KEY = re.compile(r"[0-9a-f]{2,128}")

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I32": 4}
DENSE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BITS = {"int8": 8, "int4": 4}
_KEY_GROUP = {"int8": 256, "int4": 64}  # tokens that share a scale in each channel of the keys
_VALUE_GROUP = {"int8": 128, "int4": 64}  # channels that share a scale in each token's values
_BOTH = ("keys", "values")
_METADATA = (
    *("checksum", "digests", "format", "format_version", "half", "key", "kind", "kv_format"),
    *("neighbours", "shape", "signature"),
)

Shape = tuple[int, int, int, int]
Entries = dict[str, "TensorEntry"]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a record's data: safetensors' name of its dtype, its shape, its bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def of_layers(self, layers: range) -> slice:
        """The bounds of these layers' bytes."""
        size = (self.stop - self.start) // self.shape[0]
        return slice(self.start + layers.start * size, self.start + layers.stop * size)


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """A record's metadata, as in its file's header.

    shape: [L, Hkv, T, D] of keys and of values. half: the dtype, F16 or BF16, of first tokens when
    quantised. digests: xxh3_64 of the token ids, then of each layer, in hex.
    """

    key: str
    kind: KVKind
    neighbours: tuple[str, ...]
    signature: str
    kv_format: KVFormat
    shape: Shape
    half: str
    digests: tuple[str, ...] = ()

    @property
    def layers(self) -> range:
        return range(self.shape[0])

    @property
    def entries(self) -> Entries:
        """All tensors by name, in the order of the file."""
        return dict(entries(self.kv_format, self.shape, self.half))

    @property
    def data_bytes(self) -> int:
        return entries(self.kv_format, self.shape, self.half)["values"].stop

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file, which are known before the digests are."""
        digests = self.digests or ("0" * 16,) * (len(self.layers) + 1)
        return len(header_bytes(replace(self, digests=digests))) + self.data_bytes


def first_tokens(tokens: int) -> int:
    """How many of a chunk's tokens a quantised format keeps in 16 bits."""
    return min(FIRST_TOKENS, tokens)


def key_groups(kv_format: str, tokens: int) -> int:
    """How many groups the other tokens form, which share a scale in each channel of the keys."""
    return -(-(tokens - first_tokens(tokens)) // _KEY_GROUP[kv_format])


def key_group(kv_format: str) -> int:
    """Tokens of a group that shares a scale of keys; the last group may have fewer."""
    return _KEY_GROUP[kv_format]


def value_group(kv_format: str, size: int) -> int:
    """Channels of a token's values that share a scale."""
    group = _VALUE_GROUP[kv_format]
    return group if size % group == 0 else size


@lru_cache(maxsize=1024)  # chunks have few different lengths
def entries(kv_format: str, shape: Shape, half: str) -> Mapping[str, TensorEntry]:
    """The tensors of a format, by descending item size, so that all are aligned."""
    layers, heads, tokens, size = shape
    tensors: list[tuple[str, str, tuple[int, ...]]] = [("token_ids", "I32", (tokens,))]
    if kv_format in DENSE:
        tensors += [(name, DENSE[kv_format], shape) for name in ("keys", "values")]
    else:
        first = first_tokens(tokens)
        rest = tokens - first
        packed = (layers, heads, rest, size * _BITS[kv_format] // 8)
        of_keys = (layers, heads, key_groups(kv_format, tokens), size)
        of_values = (layers, heads, rest, size // value_group(kv_format, size))
        tensors += [(f"first_{name}", half, (layers, heads, first, size)) for name in _BOTH]
        tensors += [(f"keys_{what}", "F16", of_keys) for what in ("scale", "zero")]
        tensors += [(f"values_{what}", "F16", of_values) for what in ("scale", "zero")]
        tensors += [(name, "U8", packed) for name in _BOTH]
    found: Entries = {}
    start = 0
    for name, dtype, extent in tensors:
        stop = start + prod(extent) * ITEM_BYTES[dtype]
        found[name] = TensorEntry(dtype, extent, start, stop)
        start = stop
    return found


def with_digests(header: RecordHeader, data: memoryview) -> RecordHeader:
    """The header with digests of its data, which is all tensors' bytes in the file's order."""
    tokens = header.entries["token_ids"]
    found = [xxhash.xxh3_64_hexdigest(data[tokens.start : tokens.stop])]
    found += layer_digests(header.entries, header.layers, data)
    return replace(header, digests=tuple(found))


def layer_digests(
    tensors: Mapping[str, TensorEntry], layers: range, data: memoryview
) -> Iterator[str]:
    """xxh3_64 of each of these layers' bytes, tensor by tensor in the file's order."""
    starts = [
        (entry.start, (entry.stop - entry.start) // entry.shape[0])
        for name, entry in tensors.items()
        if name != "token_ids"
    ]
    for layer in layers:
        digest = xxhash.xxh3_64()
        for start, size in starts:
            digest.update(data[start + layer * size : start + (layer + 1) * size])
        yield digest.hexdigest()


def header_bytes(header: RecordHeader, checksum: str = "") -> bytes:
    """Length and header in canonical form, padded so that the data starts at a multiple of 8.

    checksum: the header's, if it is known.
    """
    listed: dict[str, Any] = {
        name: {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.stop],
        }
        for name, entry in header.entries.items()
    }
    metadata = {
        "digests": ",".join(header.digests),
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "half": header.half,
        "key": header.key,
        "kind": header.kind,
        "kv_format": header.kv_format,
        "neighbours": ",".join(header.neighbours),
        "shape": ",".join(map(str, header.shape)),
        "signature": header.signature,
    }
    listed["__metadata__"] = metadata
    metadata["checksum"] = checksum or _checksum(listed)
    text = _canonical(listed)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def header_length(content: bytes, file_bytes: int, name: object) -> int:
    """The length of a file's header in bytes, as its first 8 bytes say.

    Raises `KVCorruptError`, naming the file.
    """
    length = int.from_bytes(content[:8], "little")
    if length > min(MAX_HEADER_BYTES, file_bytes - 8):
        raise KVCorruptError(f"{name} is damaged: it has no header of a length in bounds.")
    return 8 + length


def parse_header(content: bytes, name: object) -> RecordHeader:
    """Parse a file's header, which must be exactly what `header_bytes` writes.

    Raises `KVCorruptError`, and `KVForeignError` for another version, naming the file.
    """
    try:
        listed = json.loads(content[8:])
        metadata: dict[str, Any] = listed["__metadata__"]
        version = metadata.get("format_version")
        intact = metadata["checksum"] == _checksum(listed)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise KVCorruptError(f"{name} is damaged: its header can't be read: {error!r}") from error
    if not intact and version != "1":  # version 1's checksum included the data
        raise KVCorruptError(f"{name} is damaged: its header doesn't match its checksum.")
    if metadata.get("format") != FORMAT or version is None:
        raise KVCorruptError(f"{name} isn't a KV record: its format is {metadata.get('format')!r}.")
    if version != str(FORMAT_VERSION):
        raise KVForeignError(
            f"{name} has format version {version!r}; this release reads version "
            f"{FORMAT_VERSION}. Ingest its documents again."
        )
    try:
        header = _header_of(metadata)
    except (ValueError, LookupError, TypeError) as error:
        raise KVCorruptError(f"{name} isn't a KV record: {error!r} in its header.") from error
    if header_bytes(header, metadata["checksum"]) != content:
        raise KVCorruptError(f"{name} is damaged: its header isn't in canonical form.")
    return header


def _header_of(metadata: Mapping[str, Any]) -> RecordHeader:
    """Raises `ValueError`, `LookupError` or `TypeError` for invalid metadata."""
    if sorted(metadata) != list(_METADATA):
        raise ValueError("other entries")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("an entry that isn't a string")
    layers, heads, tokens, size = map(int, metadata["shape"].split(","))
    header = RecordHeader(
        key=metadata["key"],
        kind=metadata["kind"],
        neighbours=_listed(metadata["neighbours"]),
        signature=metadata["signature"],
        kv_format=metadata["kv_format"],
        shape=(layers, heads, tokens, size),
        half=metadata["half"],
        digests=_listed(metadata["digests"]),
    )
    if header.kind not in get_args(KVKind) or header.kv_format not in get_args(KVFormat):
        raise ValueError(f"{header.kind} KV in {header.kv_format}")
    if not all(0 < size < 1 << 31 for size in header.shape) or header.half not in ("F16", "BF16"):
        raise ValueError(f"shape {header.shape}, first tokens in {header.half}")
    if header.kv_format == "int4" and size % 2:
        raise ValueError(f"heads of {size} in int4")
    if not all(map(is_key, header.neighbours)):
        raise ValueError("neighbours that are no keys")
    if len(header.digests) != layers + 1:
        raise ValueError(f"{len(header.digests)} digests")
    return header


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _checksum(listed: Mapping[str, Any]) -> str:
    """xxh3_64 of the canonical header without its checksum, in 16 hex digits."""
    metadata = {k: v for k, v in listed["__metadata__"].items() if k != "checksum"}
    return xxhash.xxh3_64_hexdigest(_canonical({**listed, "__metadata__": metadata}))


def _canonical(listed: Mapping[str, Any]) -> bytes:
    return json.dumps(listed, sort_keys=True, separators=(",", ":")).encode()


def is_key(key: str) -> bool:
    """Whether this can be a record's key."""
    return _KEY.fullmatch(key) is not None
