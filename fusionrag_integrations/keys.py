"""Ids of chunks and keys of KV records: hashes of everything that the thing depends on.

chunk id      document, text, occurrence,       who the chunk is, and what is kept beside it
              scope, title, metadata
signature     model, format, salt               what a store's records have in common
isolated key  token ids, signature, scope       KV of a chunk behind the ingest prefix
fused key     isolated key, neighbours' keys    KV of a chunk behind its neighbours

Whatever changes the KV must change its key; stale KV is then not found rather than served.
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
    document. Whatever else an index keeps of a chunk is in its id, so that an entry is right or
    unknown, never out of date. metadata: as `metadata_json` writes it. Raises `InvalidInputError`
    for text that isn't valid Unicode.
    """
    fields = (document_id, scope, title, metadata, text, str(occurrence))
    return _digest("chunk", *map(_utf8, fields))


def tool_call_id(origin: str) -> str:
    """An id for a call of a tool: nine letters and digits, which every chat template takes.

    The same for the same origin; an origin that is such an id is it.
    """
    if len(origin) == 9 and origin.isascii() and origin.isalnum():
        return origin
    return b32encode(sha256(_utf8(origin)).digest()).decode()[:9]


def metadata_json(document_id: str, metadata: Mapping[str, object]) -> str:
    """Metadata in one line, whatever its order; raises `InvalidInputError` for what can't be kept.

    Vector stores give the same entries back in another order.
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
    """Stands for a document where its scope and id can't be written, such as in a file's name."""
    return _digest("document", *(t.encode(errors="surrogatepass") for t in (scope, document_id)))


def salt_id(salt: str) -> str:
    """Stands for a salt where it can be read; empty for none."""
    return _digest("salt", _utf8(salt)) if salt else ""


def record_signature(model_signature: str, kv_format: str, salt_id: str) -> str:
    """What all records of a store have in common.

    model_signature: of the model, its settings and the ingest prefix.
    """
    return _digest("records", *map(_utf8, (model_signature, kv_format, salt_id)))


def isolated_key(token_ids: Sequence[int], signature: str, scope: str) -> str:
    """The key of isolated KV.

    signature: the records'. scope: equal tokens of two scopes must not share KV.
    """
    ids = struct.pack(f"<{len(token_ids)}q", *token_ids)
    return _digest("isolated", ids, _utf8(signature), _utf8(scope))


def fused_key(isolated_key: str, neighbour_isolated_keys: Sequence[str]) -> str:
    """The key of KV computed behind these neighbours, in this order."""
    return _digest("fused", *map(_utf8, (isolated_key, *neighbour_isolated_keys)))


def _digest(domain: str, *fields: bytes) -> str:
    """64 hex digits. Lengths come first, so that no two lists of fields hash the same bytes."""
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
