"""Ids of chunks and keys of KV records: hashes of everything that they depend on.

                hash of                           names
chunk id        document, text, occurrence,       a chunk, with all that an index stores of it
                scope, title, metadata
signature       model, format, salt               what a store's records have in common
isolated key    token ids, signature, scope       a chunk's KV computed after the ingest prefix
fused key       isolated key, neighbours' keys    a chunk's KV computed after its neighbours

Whatever changes the KV must change its key: stale KV is then not found, instead of served.
"""

from __future__ import annotations

import json
import struct
from base64 import b32encode
from collections.abc import Mapping, Sequence
from hashlib import sha256

from fusionrag_integrations.errors import InvalidInputError


def chunk_id(
    document_id: str, text: str, occurrence: int, *, scope: str, title: str, metadata: str
) -> str:
    """The id of the `occurrence`-th chunk (from 0) with this text in this document.

    Counting equal texts, not positions, keeps the id when text is inserted elsewhere in the
    document. All that an index stores of a chunk is hashed, so that no entry of an index is ever
    out of date. metadata: from `metadata_json`. Raises `InvalidInputError` for invalid Unicode.
    """
    fields = (document_id, scope, title, metadata, text, str(occurrence))
    return _digest("chunk", *map(_utf8, fields))


def tool_call_id(origin: str) -> str:
    """The id of a tool call: nine letters and digits, which every chat template accepts.

    The same for the same origin; an origin that has this form is kept.
    """
    if len(origin) == 9 and origin.isascii() and origin.isalnum():
        return origin
    return b32encode(sha256(_utf8(origin)).digest()).decode()[:9]


def metadata_json(document_id: str, metadata: Mapping[str, object]) -> str:
    """Metadata as JSON in one line. Raises `InvalidInputError` for what isn't JSON.

    Sorted, since vector stores return entries in another order.
    """
    try:
        text = json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False)
        text.encode()
        return text
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"Metadata of document {document_id!r} can't be stored: {error}. "
            "Values may be strings, numbers and booleans."
        ) from error


def document_name(scope: str, document_id: str) -> str:
    """A document's name where its scope and id can't be used, such as in a file's name."""
    return _digest("document", *(t.encode(errors="surrogatepass") for t in (scope, document_id)))


def salt_id(salt: str) -> str:
    """The hash of a salt, which is itself never stored; empty for no salt."""
    return _digest("salt", _utf8(salt)) if salt else ""


def record_signature(model_signature: str, kv_format: str, salt_id: str) -> str:
    """The signature of all records of a store.

    model_signature: of the model, its settings and the ingest prefix.
    """
    return _digest("records", *map(_utf8, (model_signature, kv_format, salt_id)))


def isolated_key(token_ids: Sequence[int], signature: str, scope: str) -> str:
    """The key of isolated KV.

    signature: from `record_signature`. scope: equal tokens of two scopes must not share KV.
    """
    ids = struct.pack(f"<{len(token_ids)}q", *token_ids)
    return _digest("isolated", ids, _utf8(signature), _utf8(scope))


def fused_key(isolated_key: str, neighbour_isolated_keys: Sequence[str]) -> str:
    """The key of KV computed after these neighbours, in this order."""
    return _digest("fused", *map(_utf8, (isolated_key, *neighbour_isolated_keys)))


def _digest(domain: str, *fields: bytes) -> str:
    """64 hex digits. Each field's length is hashed too, so that different lists never collide."""
    digest = sha256()
    for field in (domain.encode(), *fields):
        digest.update(struct.pack("<Q", len(field)))
        digest.update(field)
    return digest.hexdigest()


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"A text can't be encoded as UTF-8: {error}. "
            "Remove or replace lone surrogates before ingesting it."
        ) from error
