"""Rows of chunks and traces, to and from what they hold, with checksums.

A chunk has one checksum of its content and one of its tokens, checked whenever a row is read.
Where the second doesn't match, the text can still be found and computed afresh.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import xxhash

from fusionrag_integrations.documents.chunk_record import ChunkRecord, ContextTrace, EncodedChunk
from fusionrag_integrations.documents.keys import metadata_json
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import CatalogRowError

logger = logging.getLogger(__name__)

WRITTEN = """id, captured, scope, document_id, position, text, title, metadata, content_sum,
    token_ids, offsets, isolated_key, tokens_sum, text_hash"""
_READ = WRITTEN.replace(
    "text_hash", "fused_key, fused_sum, traced_key, trace, traced_with, trace_sum"
)
RECORDS = f"SELECT {_READ} FROM chunks LEFT JOIN traces USING (traced_key)"
IN_ORDER = "ORDER BY scope, document_id, position"
REPAIR_HINT = "`fusionrag repair` fixes it; where it can't, ingest the document again or delete it."


def to_row(record: ChunkRecord, captured: bool) -> tuple[object, ...]:
    """Values for `WRITTEN`."""
    chunk, encoded = record.chunk, record.encoded
    metadata_json(chunk.document_id, chunk.metadata)  # raises for what can't be kept
    metadata = json.dumps(dict(chunk.metadata))  # in the user's order, as prompts may show it
    name = (chunk.id, int(captured), chunk.scope, chunk.document_id, chunk.index)
    content = (*name, chunk.text, chunk.title, metadata)
    tokens = (
        packed("i", *encoded.token_ids),
        packed("i", *(bound for pair in encoded.offsets for bound in pair)),
        record.isolated_key,
    )
    sums = checksum(*content), checksum(chunk.id, *tokens)
    return (*content, sums[0], *tokens, sums[1], text_hash(chunk.text))


def to_record(row: tuple[Any, ...], catalog: Path, *, strict: bool) -> ChunkRecord:
    """The record in a row of `RECORDS`. Raises `CatalogRowError` where it is damaged.

    strict: whether damaged tokens, keys and traces are an error too, or are left out and logged.
    catalog: the file, for messages.
    """
    chunk_id, captured, scope, document_id, index, text, title, metadata, *rest = row
    content_sum, token_ids, offsets, isolated_key, tokens_sum, *fused = rest
    if content_sum != checksum(*row[:8]):
        raise CatalogRowError(
            f"Chunk {index!r} of document {document_id!r} is damaged in {catalog}. {REPAIR_HINT}"
        )
    chunk = Chunk(chunk_id, document_id, index, text, title, scope, json.loads(metadata))

    def damaged(what: str) -> None:
        where = f"chunk {index} of document {document_id!r} in {catalog}"
        message = f"The {what} of {where} can't be used. {REPAIR_HINT}"
        if strict:
            raise CatalogRowError(message)
        logger.warning(message)

    if tokens_sum != checksum(chunk_id, token_ids, offsets, isolated_key):
        damaged("tokens")
        return ChunkRecord(EncodedChunk(chunk, (), ()), "", captured=bool(captured))
    ids = struct.unpack(f"<{len(token_ids) // 4}i", token_ids)
    bounds = struct.unpack(f"<{len(offsets) // 4}i", offsets)
    encoded = EncodedChunk(chunk, ids, tuple(zip(bounds[::2], bounds[1::2], strict=True)))
    fused_key, fused_sum, traced_key, numbers, traced_with, trace_sum = fused
    if fused_key and fused_sum != checksum(chunk_id, fused_key):
        damaged("fused key")
        fused_key = ""
    trace = None
    if trace_sum is not None:
        if trace_sum == checksum(traced_key, numbers, traced_with):
            trace = _to_trace(numbers, traced_with, len(ids))
        else:
            damaged("trace")
    return ChunkRecord(encoded, isolated_key, fused_key, trace, bool(captured))


def trace_row(fused_key: str, trace: ContextTrace) -> tuple[object, ...]:
    """A row of traces: its numbers, and the rest as JSON."""
    numbers = packed("f", *trace.sensitivity, *trace.outside, *trace.inside, *trace.by_neighbour)
    rest = json.dumps({"neighbours": trace.neighbours, "tokens": trace.neighbour_tokens})
    return fused_key, numbers, rest, checksum(fused_key, numbers, rest)


def _to_trace(trace: bytes, traced_with: str, tokens: int) -> ContextTrace:
    numbers = struct.unpack(f"<{len(trace) // 4}f", trace)
    sensitivity, outside, inside = (numbers[i * tokens : (i + 1) * tokens] for i in range(3))
    by_neighbour = numbers[3 * tokens :]
    rest = json.loads(traced_with)
    neighbours = tuple(rest["neighbours"])
    return ContextTrace(sensitivity, outside, inside, neighbours, by_neighbour, rest["tokens"])


def checksum(*values: object) -> bytes:
    """Of text, integers and bytes, as SQLite returns them."""
    digest = xxhash.xxh3_128()
    for value in values:
        content = value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")
        digest.update(f"{type(value).__name__} {len(content)}\n".encode())
        digest.update(content)
    return digest.digest()


def text_hash(text: str) -> bytes:
    """By which chunks with a text are found."""
    return sha256(text.encode(errors="surrogatepass")).digest()


def parameters(values: Iterable[str]) -> list[tuple[str]]:
    """Of `executemany`, for a statement with one parameter."""
    return [(value,) for value in values]


def packed(kind: str, *numbers: float) -> bytes:
    """Little-endian numbers. kind: "f" for float32, "i" for int32."""
    return struct.pack(f"<{len(numbers)}{kind}", *numbers)
