"""What a search returns: chunks with handles to their stored KV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from fusionrag_integrations.documents.types import Chunk, DocumentKey, MetadataValue

KVKind = Literal["isolated", "fused"]


@dataclass(frozen=True, slots=True)
class KVHandle:
    """Names a chunk and its stored KV. Holds strings only, so that any metadata can carry it."""

    chunk_id: str
    isolated_key: str
    fused_key: str = ""

    def to_metadata(self) -> dict[str, MetadataValue]:
        """Flat metadata entries, one per field, under `fusionrag_` names."""
        return {f"fusionrag_{f.name}": getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> KVHandle | None:
        """The handle in `metadata`, or None where there is none."""
        values = {f.name: str(metadata.get(f"fusionrag_{f.name}", "")) for f in fields(cls)}
        return cls(**values) if values["chunk_id"] else None


HANDLE_METADATA_KEYS = tuple(f"fusionrag_{f.name}" for f in fields(KVHandle))


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A chunk that the index found. `score` is cosine similarity, higher is nearer."""

    chunk: Chunk
    score: float
    handle: KVHandle


def document_order(hits: Sequence[SearchHit]) -> list[SearchHit]:
    """Hits grouped by document, best document first, each document's chunks in its own order.

    A chunk may refer back to the one before it, which therefore must precede it in a prompt.
    """
    rank: dict[DocumentKey, int] = {}
    for hit in hits:
        rank.setdefault(hit.chunk.document, len(rank))
    return sorted(hits, key=lambda hit: (rank[hit.chunk.document], hit.chunk.index))
