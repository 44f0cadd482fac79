"""Finds the neighbours of a store's chunks, by a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.ingest.neighbours import (
    MAX_NEIGHBOUR_TOKENS,
    Candidates,
    NeighbourPolicy,
)
from fusionrag_integrations.ingest.work import ChunkTokens, FusedChunk
from fusionrag_integrations.store.store import Store


@dataclass(frozen=True, slots=True)
class Links:
    """A chunk of a document, and the chunks behind which it is fused."""

    chunk_id: str
    document: DocumentKey
    neighbour_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WithNeighbours:
    """A chunk that has neighbours. fused: what is to be computed of it."""

    links: Links
    fused: FusedChunk


class NeighbourSearch:
    """Among all chunks of a store, as many as fit into the model's context with a chunk."""

    def __init__(self, store: Store, facts: ModelFacts, policy: NeighbourPolicy) -> None:
        self._store = store
        self._catalog = store.catalog
        self._facts = facts
        self._policy = policy

    def with_neighbours(self, chunk_ids: Sequence[str]) -> list[WithNeighbours]:
        """Those of these chunks that have neighbours, in one query of the index."""
        similar = self._store.similar(chunk_ids, self._policy.similar)
        records = (self._catalog.chunks.record(chunk_id) for chunk_id in chunk_ids)
        found = [self._found(record, similar[record.chunk.id]) for record in records if record]
        return [one for one in found if one]

    def of_adhoc(self, record: ChunkRecord) -> WithNeighbours | None:
        """An ad-hoc chunk, which isn't in the index, if it has neighbours there."""
        return self._found(record, self._store.similar_to(record.chunk, self._policy.similar))

    def _found(self, record: ChunkRecord, similar: Sequence[str]) -> WithNeighbours | None:
        facts, most = self._facts, self._policy.similar + self._policy.predecessors
        around = len(facts.prefix_ids) + most * len(facts.separator_ids)
        room = facts.context_window - around - len(record.encoded.token_ids)
        neighbours = self._policy.choose(
            Candidates(
                record,
                self._catalog.chunks.predecessors(record.chunk.id, self._policy.predecessors),
                list(self._catalog.chunks.records(similar).values()),
                max_tokens=min(MAX_NEIGHBOUR_TOKENS, facts.context_window // 2, room),
            )
        )
        if not neighbours:
            return None
        return WithNeighbours(
            Links(
                record.chunk.id,
                record.chunk.document,
                tuple(neighbour.chunk.id for neighbour in neighbours),
            ),
            FusedChunk(ChunkTokens.of(record), tuple(map(ChunkTokens.of, neighbours))),
        )
