"""Which KV of a store's chunks is missing: isolated, and fused behind each chunk's neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fusionrag_integrations.documents.chunk_record import ContextTrace
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.ingest.neighbour_search import Links, NeighbourSearch
from fusionrag_integrations.ingest.neighbours import NeighbourPolicy
from fusionrag_integrations.ingest.work import ChunkTokens, Computed, FusedChunk, IngestWork
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.support.batches import in_batches
from fusionrag_integrations.support.progress import Progress

FUSE_BATCH = 256  # chunks whose neighbours are looked up in one query of the index


@dataclass(slots=True)
class _Fusing:
    """What is under way.

    traced: keys of the fused KV whose traces are known. usable: of that which is stored, too, as
    far as it was asked for. waiting: the chunks of fused KV that isn't computed yet, by its key.
    documents: those that have changed. done: how many chunks need nothing more.
    """

    traced: set[str]
    usable: set[str] = field(default_factory=set)
    waiting: dict[str, list[Links]] = field(default_factory=dict)
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

    def compute(self) -> tuple[int, int]:
        """Have the KV of chunks computed that have none, and note it.

        Returns of how many isolated, and of how many fused.
        """
        catalog = self._catalog.kv
        keys = catalog.keys_by_chunk()
        isolated = {key: chunk_id for chunk_id, key, _ in keys}
        fused = {chunk_id: key for chunk_id, _, key in keys if key}
        stored = self._store.records.existing({*isolated, *fused.values()})
        missing = [chunk_id for key, chunk_id in isolated.items() if key not in stored]
        lost = [chunk_id for chunk_id, key in fused.items() if key not in stored]
        unfused = [*catalog.unfused_ids(), *lost]
        fusing = _Fusing(catalog.traced_keys())
        counts = Counter[str]()
        told = -1
        self._progress("isolated", 0, len(missing))
        if not missing:
            self._progress("fused", 0, len(unfused))
        for made in self._work.kv(self._tokens(missing), self._to_fuse(unfused, fusing)):
            self.full = self.full or not made.is_stored
            counts[made.kind] += 1
            if made.kind == "isolated":
                self._progress("isolated", counts["isolated"], len(missing))
                if counts["isolated"] == len(missing):
                    self._progress("fused", 0, len(unfused))
                continue
            self._take_in(made, fusing)
            told = fusing.done
            self._progress("fused", told, len(unfused))
        self._store.changes.note_links(sorted(fusing.documents))
        if told < len(unfused):  # the last ones have no neighbours
            self._progress("fused", len(unfused), len(unfused))
        return counts["isolated"], counts["fused"]

    def _tokens(self, chunk_ids: Sequence[str]) -> Iterator[ChunkTokens]:
        for chunk_id in chunk_ids:
            yield ChunkTokens.of(self._catalog.chunks.records([chunk_id])[chunk_id])

    def _take_in(self, made: Computed, fusing: _Fusing) -> None:
        """Note fused KV of all chunks that it was computed for."""
        waiting = fusing.waiting.pop(made.key)
        if made.is_stored:
            for links in waiting:
                self._note(fusing, links, made.key, made.trace)
        fusing.done += len(waiting)

    def _to_fuse(self, chunk_ids: Sequence[str], fusing: _Fusing) -> Iterator[FusedChunk]:
        """What has to be computed, each fused KV once. Notes what is there already."""
        for asked in in_batches(chunk_ids, FUSE_BATCH):
            placed = self._search.with_neighbours(asked)
            fusing.done += len(asked) - len(placed)
            keys = {one.fused.key for one in placed}
            fusing.usable |= self._store.records.existing(keys & fusing.traced)
            for one in placed:
                key = one.fused.key
                if key in fusing.usable:
                    self._note(fusing, one.links, key, None)
                    fusing.done += 1
                elif key in fusing.waiting:
                    fusing.waiting[key].append(one.links)
                else:
                    fusing.waiting[key] = [one.links]
                    yield one.fused

    def _note(self, fusing: _Fusing, links: Links, key: str, trace: ContextTrace | None) -> None:
        self._catalog.kv.set_fused(links.chunk_id, key, links.neighbour_ids, trace)
        fusing.usable.add(key)
        fusing.documents.add(links.document)
