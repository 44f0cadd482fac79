"""The port for what an ingest computes: by this process's model, or by those of other machines.

What goes in and out are plain values, so that they can be sent. KV doesn't travel: it is stored by
whoever computes it, under keys that say what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from fusionrag_integrations.documents.chunk_record import ChunkRecord, ContextTrace
from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.documents.keys import fused_key
from fusionrag_integrations.documents.types import Document
from fusionrag_integrations.store.changes import Update
from fusionrag_integrations.store.corrections import Correction


@dataclass(frozen=True, slots=True)
class ChangedDocument:
    """A document with the hash of its content."""

    document: Document
    content_hash: str


@dataclass(frozen=True, slots=True)
class ChunkTokens:
    """A chunk's tokens, and the key of its isolated KV."""

    key: str
    token_ids: tuple[int, ...]

    @classmethod
    def of(cls, record: ChunkRecord) -> ChunkTokens:
        return cls(record.isolated_key, record.encoded.token_ids)


@dataclass(frozen=True)
class FusedChunk:
    """A chunk that is to be fused behind neighbours, at least one, in their order."""

    chunk: ChunkTokens
    neighbours: tuple[ChunkTokens, ...]

    @cached_property
    def key(self) -> str:
        """Of the fused KV."""
        return fused_key(self.chunk.key, [neighbour.key for neighbour in self.neighbours])


@dataclass(frozen=True, slots=True)
class Computed:
    """KV that was computed. is_stored: False where there was no room for it. trace: of fused KV."""

    key: str
    is_stored: bool = True
    trace: ContextTrace | None = None

    @property
    def kind(self) -> KVKind:
        return "isolated" if self.trace is None else "fused"


class IngestWork(Protocol):
    """Does what needs a tokenizer, an embedding or a model.

    Results come in any order, each once it is there; what is given may be taken in long before.
    """

    def split(self, documents: Iterable[ChangedDocument]) -> Iterator[Update]:
        """Documents as chunks with tokens; vectors may be left to the store. Raises
        `InvalidInputError` for a chunk that the model's context doesn't hold.
        """
        ...

    def kv(
        self, isolated: Iterable[ChunkTokens], fused: Iterable[FusedChunk]
    ) -> Iterator[Computed]:
        """Compute and store isolated KV, then fused KV. Ends early where the disk is full."""
        ...

    def correction(
        self, mixtures: Sequence[Sequence[ChunkRecord]], progress: Callable[[int, int], None]
    ) -> tuple[Correction | None, tuple[str, ...]]:
        """What `mixtures.measure_correction` measures. Raises `KVRecordError`."""
        ...
