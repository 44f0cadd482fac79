"""Which KV of a store's chunks is missing: isolated, and fused behind each chunk's neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fusionrag_integrations.documents.chunk_record import ContextTrace
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.ingest.neighbour_search import NeighbourSearch
from fusionrag_integrations.ingest.neighbours import NeighbourPolicy
from fusionrag_integrations.ingest.work import ChunkTokens, FusedChunk, IngestWork
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.support.batches import in_batches
from fusionrag_integrations.support.progress import Progress

FUSE_BATCH = 256  # chunks whose neighbours are looked up in one query of the index


@dataclass(slots=True)
class _Fusing:
    """What is under way.

    traced: keys of the fused KV whose traces are known. usable: of that which is stored, too, as
    far as it was asked for. waiting: by the key of their fused KV, ids of chunks, each with its
    neighbours'. documents: those that have changed. done: how many chunks need nothing more.
    """

    traced: set[str]
    usable: set[str] = field(default_factory=set)
    waiting: dict[str, list[tuple[str, tuple[str, ...]]]] = field(default_factory=dict)
    documents: set[DocumentKey] = field(default_factory=set)
    done: int = 0


class MissingKV:
    """Has the KV computed that is missing, and notes in the catalog what is true of it.

    full: whether KV was not stored, because the disk budget has no room.
    """

    def __init__(
        self,
        work: IngestWork,
        store: Store,
        facts: ModelFacts,
        neighbours: NeighbourPolicy,
        progress: Progress,
    ) -> None:
        self._work = work
        self._store = store
        self._catalog = store.catalog
        self._search = NeighbourSearch(store, facts, neighbours)
        self._progress = progress
        self.full = False

    def without_kv(self) -> int:
        """How many chunks have no KV."""
        keys = [isolated for _, isolated, _ in self._catalog.kv.keys_by_chunk()]
        stored = self._store.records.existing(set(keys))
        return sum(key not in stored for key in keys)

    def prefill(self) -> int:
        """Have isolated KV of the chunks computed that have none; returns how many there were."""
        chunks = {isolated: i for i, isolated, _ in self._catalog.kv.keys_by_chunk()}
        stored = self._store.records.existing(chunks)
        missing = {key: chunk_id for key, chunk_id in chunks.items() if key not in stored}
        records = (self._catalog.chunks.records([chunk])[chunk] for chunk in missing.values())
        done = 0
        self._progress("isolated", done, len(missing))
        for computed in self._work.isolated(map(ChunkTokens.of, records)):
            done += 1
            self.full = self.full or not computed.is_stored
            self._progress("isolated", done, len(missing))
        self._progress("isolated", len(missing), len(missing))
        return done

    def fuse(self) -> int:
        """Have fused KV of the chunks computed that have none, and note it; returns how many."""
        fused_keys = {i: fused for i, _, fused in self._catalog.kv.keys_by_chunk() if fused}
        stored = self._store.records.existing(set(fused_keys.values()))
        lost = [chunk_id for chunk_id, key in fused_keys.items() if key not in stored]
        unfused = [*self._catalog.kv.unfused_ids(), *lost]
        fusing = _Fusing(self._catalog.kv.traced_keys())
        computed = 0
        for made in self._work.fused(self._to_fuse(unfused, fusing)):
            computed += 1
            self.full = self.full or not made.is_stored
            waiting = fusing.waiting.pop(made.key)
            if made.is_stored:
                for chunk_id, neighbours in waiting:
                    self._note(fusing, chunk_id, made.key, neighbours, made.trace)
            fusing.done += len(waiting)
            self._progress("fused", fusing.done, len(unfused))
        self._store.changes.note_links(sorted(fusing.documents))
        self._progress("fused", len(unfused), len(unfused))
        return computed

    def _to_fuse(self, chunk_ids: Sequence[str], fusing: _Fusing) -> Iterator[FusedChunk]:
        """What has to be computed, each fused KV once. Notes what is there already."""
        for asked in in_batches(chunk_ids, FUSE_BATCH):
            placed = self._search.with_neighbours(asked)
            fusing.done += len(asked) - len(placed)
            self._progress("fused", fusing.done, len(chunk_ids))
            keys = {one.fused.key for one in placed}
            fusing.usable |= self._store.records.existing(keys & fusing.traced)
            for one in placed:
                key, chunk_id, neighbours = one.fused.key, one.chunk_id, one.neighbour_ids
                if key in fusing.usable:
                    self._note(fusing, chunk_id, key, neighbours, None)
                    fusing.done += 1
                elif key in fusing.waiting:
                    fusing.waiting[key].append((chunk_id, neighbours))
                else:
                    fusing.waiting[key] = [(chunk_id, neighbours)]
                    yield one.fused

    def _note(
        self,
        fusing: _Fusing,
        chunk_id: str,
        key: str,
        neighbours: tuple[str, ...],
        trace: ContextTrace | None,
    ) -> None:
        self._catalog.kv.set_fused(chunk_id, key, neighbours, trace)
        fusing.usable.add(key)
        if record := self._catalog.chunks.record(chunk_id):
            fusing.documents.add(record.chunk.document)
