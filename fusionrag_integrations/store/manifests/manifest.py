"""A document with its chunks, keys, links and vectors, to and from JSON."""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fusionrag_integrations.documents.chunk_record import ChunkRecord, ContextTrace, EncodedChunk
from fusionrag_integrations.documents.keys import isolated_key
from fusionrag_integrations.documents.types import Chunk, DocumentKey


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

    def has_chunks_of(self, other: Manifest) -> bool:
        """Whether two have the same chunks and tokens, whatever is fused."""
        return [*map(_unfused, self.records)] == [*map(_unfused, other.records)]

    def is_made_with(self, signature: str) -> bool:
        """Whether its keys are those of its tokens. signature: of the store's KV records."""
        return all(
            isolated_key(record.encoded.token_ids, signature, self.document.scope)
            == record.isolated_key
            for record in self.records
        )

    def to_json(self) -> dict[str, Any]:
        chunks = [
            _chunk_to_json(record, neighbours)
            | {"vector": _packed(self.vectors.get(record.chunk.id))}
            for record, neighbours in zip(self.records, self.neighbours, strict=True)
        ]
        key = {"id": self.document.id, "scope": self.document.scope}
        return key | {"content_hash": self.content_hash, "chunks": chunks}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Manifest:
        """Raises `LookupError`, `TypeError`, `ValueError` or `struct.error` for damaged content."""
        document = DocumentKey(content["id"], content["scope"])
        chunks = content["chunks"]
        return cls(
            document,
            content["content_hash"],
            tuple(_record_from_json(document, chunk) for chunk in chunks),
            tuple(tuple(chunk["neighbours"]) for chunk in chunks),
            {chunk["id"]: _unpacked(chunk["vector"]) for chunk in chunks if chunk["vector"]},
        )


def _unfused(record: ChunkRecord) -> tuple[object, ...]:
    """What a record is without its fused KV. A chunk's id stands for its content."""
    chunk, encoded = record.chunk, record.encoded
    return chunk.id, chunk.index, encoded.token_ids, encoded.offsets, record.isolated_key


def _chunk_to_json(record: ChunkRecord, neighbours: Sequence[str]) -> dict[str, Any]:
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


def _record_from_json(document: DocumentKey, content: dict[str, Any]) -> ChunkRecord:
    text = {name: content[name] for name in ("index", "text", "title", "metadata")}
    chunk = Chunk(content["id"], document.id, scope=document.scope, **text)
    offsets = tuple((start, stop) for start, stop in content["offsets"])
    encoded = EncodedChunk(chunk, tuple(content["token_ids"]), offsets)
    trace = None if content["trace"] is None else _trace_from_json(**content["trace"])
    return ChunkRecord(encoded, content["isolated_key"], content["fused_key"], trace)


def _trace_from_json(neighbour_tokens: int, **numbers: list[Any]) -> ContextTrace:
    return ContextTrace(
        neighbour_tokens=neighbour_tokens, **{name: tuple(v) for name, v in numbers.items()}
    )


def _packed(vector: Sequence[float] | None) -> str:
    """float32, little-endian, in base64; empty where there is none."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if vector else ""


def _unpacked(vector: str) -> list[float]:
    numbers = b64decode(vector, validate=True)
    return [number for (number,) in struct.iter_unpack("<f", numbers)]
