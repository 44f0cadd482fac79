"""Files of records made without the code under test, as docs/kv_format.md has them."""

from __future__ import annotations

import json
import struct
from typing import Any

import xxhash

Listed = dict[str, Any]


def build(listed: Listed, data: bytes) -> bytes:
    """A file with the right checksum of its header, whatever that says."""
    listed["__metadata__"].pop("checksum", None)
    listed["__metadata__"]["checksum"] = xxhash.xxh3_64_hexdigest(canonical(listed))
    text = canonical(listed)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def canonical(listed: Listed) -> bytes:
    return json.dumps(listed, sort_keys=True, separators=(",", ":")).encode()


def tiny_parts(key: str = "abcdef01") -> tuple[Listed, bytes]:
    """Header and data of a record of one layer, one head, two tokens, heads of one number."""
    tokens = struct.pack("<2i", 5, 258)
    keys, values = struct.pack("<2f", 1.0, 2.0), struct.pack("<2f", -1.0, 0.5)
    digests = xxhash.xxh3_64_hexdigest(tokens), xxhash.xxh3_64_hexdigest(keys + values)
    listed = {
        "__metadata__": {
            "digests": ",".join(digests),
            "format": "fusionrag-kv",
            "format_version": "2",
            "half": "F16",
            "key": key,
            "kind": "fused",
            "kv_format": "float32",
            "neighbours": "0a,0b",
            "shape": "1,1,2,1",
            "signature": "model-a",
        },
        "token_ids": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]},
        "keys": {"dtype": "F32", "shape": [1, 1, 2, 1], "data_offsets": [8, 16]},
        "values": {"dtype": "F32", "shape": [1, 1, 2, 1], "data_offsets": [16, 24]},
    }
    return listed, tokens + keys + values


def version_one_parts() -> tuple[Listed, bytes]:
    """Header and data of the same record in the format's first version, without a checksum."""
    listed = {
        "__metadata__": {
            "format": "fusionrag-kv",
            "format_version": "1",
            "key": "abcdef01",
            "kind": "fused",
            "neighbours": "0a,0b",
            "signature": "model-a",
        },
        "keys": {"dtype": "F32", "shape": [1, 1, 2, 1], "data_offsets": [0, 8]},
        "values": {"dtype": "F32", "shape": [1, 1, 2, 1], "data_offsets": [8, 16]},
        "token_ids": {"dtype": "I32", "shape": [2], "data_offsets": [16, 24]},
    }
    return listed, struct.pack("<4f2i", 1.0, 2.0, -1.0, 0.5, 5, 258)


def build_version_one(listed: Listed, data: bytes) -> bytes:
    """A file of the first version, whose checksum counted the data in."""
    checksum = xxhash.xxh3_64_hexdigest(canonical(listed) + data)
    listed["__metadata__"]["checksum"] = checksum
    text = canonical(listed)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data
