"""The KV of a store's chunks: isolated, then fused behind each chunk's neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from fusionrag_integrations.documents.chunk_record import ChunkRecord, ContextTrace
from fusionrag_integrations.documents.keys import fused_key
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import KVRecordError
from fusionrag_integrations.execution.chunk_kv import (
    Fusion,
    fuse_chunks,
    prefill_chunks,
    prefill_prefix,
)
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.ingest.neighbours import (
    MAX_NEIGHBOUR_TOKENS,
    Candidates,
    NeighbourPolicy,
)
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.kv.types import ChunkKV
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.support.progress import Progress

FUSE_BATCH = 256  # chunks whose neighbours are looked up in one query of the index
PASS_TOKENS = 512  # of chunks that are computed together; more rows are multiplied no faster
NEIGHBOURS_IN_MEMORY = 128  # isolated KV cached while fusing: similar chunks share neighbours

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Fusing:
    """A chunk and the neighbours behind which it is to be fused."""

    record: ChunkRecord
    neighbours: tuple[ChunkRecord, ...]

    @property
    def key(self) -> str:
        return fused_key(self.record.isolated_key, [n.isolated_key for n in self.neighbours])


class ChunkPrefill:
    """Computes the KV that is missing, and stores it.

    full: whether KV was not stored, because the disk budget has no room.
    """

    def __init__(
        self,
        executor: Executor,
        store: Store,
        kv: TieredKV,
        prefix_ids: tuple[int, ...],
        separator_ids: tuple[int, ...],
        neighbours: NeighbourPolicy,
        progress: Progress,
    ) -> None:
        """prefix_ids: before every chunk. separator_ids: between a chunk and its neighbours."""
        self._executor = executor
        self._store = store
        self._catalog = store.catalog
        self._kv = kv
        self._prefix = prefill_prefix(executor, prefix_ids)
        self._separator = separator_ids
        self._policy = neighbours
        self._progress = progress
        self.full = False

    def without_kv(self) -> int:
        """How many chunks have no KV."""
        keys = [isolated for _, isolated, _ in self._catalog.kv.keys_by_chunk()]
        stored = self._kv.existing(set(keys))
        return sum(key not in stored for key in keys)

    def prefill_missing(self) -> int:
        """Compute isolated KV of the chunks that have none; returns how many there were."""
        chunks = {isolated: i for i, isolated, _ in self._catalog.kv.keys_by_chunk()}
        stored = self._kv.existing(chunks)
        missing = {key: chunk_id for key, chunk_id in chunks.items() if key not in stored}
        records = (self._catalog.chunks.records([chunk])[chunk] for chunk in missing.values())
        done = 0
        for batch in _batches(records, lambda record: record):
            self._progress("isolated", done, len(missing))
            self._prefill_isolated(batch)
            done += len(batch)
            if self.full:
                break
        self._progress("isolated", len(missing), len(missing))
        return done

    def _prefill_isolated(self, records: Sequence[ChunkRecord]) -> list[ChunkKV]:
        tokens = {record.isolated_key: record.encoded.token_ids for record in records}
        kvs = prefill_chunks(self._executor, self._prefix, tokens)
        for kv in kvs:
            self._put(kv)
        return kvs

    def _put(self, kv: ChunkKV) -> bool:
        """Store a record; returns whether there was room."""
        kept = self._kv.put(kv)
        self.full = self.full or not kept
        return kept

    def fuse_missing(self) -> int:
        """Compute fused KV of the chunks that have none, and record it; returns how many."""
        fused_keys = {i: fused for i, _, fused in self._catalog.kv.keys_by_chunk() if fused}
        stored = self._kv.existing(set(fused_keys.values()))
        lost = [chunk_id for chunk_id, key in fused_keys.items() if key not in stored]
        unfused = [*self._catalog.kv.unfused_ids(), *lost]
        traced = self._catalog.kv.traced_keys()
        touched: set[DocumentKey] = set()
        load = lru_cache(NEIGHBOURS_IN_MEMORY)(self._load_isolated)
        computed = 0
        for batch in _batches(self._to_fuse(unfused), lambda fusing: fusing.record):
            usable = self._kv.existing({fusing.key for fusing in batch}) & traced
            missing = {fusing.key: fusing for fusing in batch if fusing.key not in usable}
            traces = self._fuse(missing, load)
            for fusing in batch:
                chunk_id, key = fusing.record.chunk.id, fusing.key
                neighbours = [neighbour.chunk.id for neighbour in fusing.neighbours]
                if key in usable or key in traces:
                    self._catalog.kv.set_fused(chunk_id, key, neighbours, traces.get(key))
                    touched.add(fusing.record.chunk.document)
            traced |= traces.keys()
            computed += len(missing)
            if self.full:
                break
        self._store.changes.note_links(sorted(touched))
        self._progress("fused", len(unfused), len(unfused))
        return computed

    def _fuse(
        self, missing: Mapping[str, _Fusing], load: Callable[[str], ChunkKV]
    ) -> dict[str, ContextTrace]:
        """Compute and store these, by key; returns the traces of those that found room."""
        fusions = [
            Fusion(
                key,
                load(fusing.record.chunk.id),
                tuple(load(neighbour.chunk.id) for neighbour in fusing.neighbours),
            )
            for key, fusing in missing.items()
        ]
        traces = {}
        for fused, trace in fuse_chunks(self._executor, self._prefix, fusions, self._separator):
            if self._put(fused):
                traces[fused.key] = trace
        return traces

    def _to_fuse(self, chunk_ids: Sequence[str]) -> Iterator[_Fusing]:
        """The chunks that have neighbours, with them."""
        for start in range(0, len(chunk_ids), FUSE_BATCH):
            asked = chunk_ids[start : start + FUSE_BATCH]
            similar = self._store.similar(asked, self._policy.similar)
            for count, chunk_id in enumerate(asked, start=start):
                self._progress("fused", count, len(chunk_ids))
                record = self._catalog.chunks.record(chunk_id)
                if record is None:
                    continue
                near = self._catalog.chunks.records(similar[chunk_id])
                neighbours = self._neighbours(record, list(near.values()))
                if neighbours:
                    yield _Fusing(record, tuple(neighbours))

    def _neighbours(self, record: ChunkRecord, similar: list[ChunkRecord]) -> list[ChunkRecord]:
        window = self._executor.model.context_window
        most = self._policy.similar + self._policy.predecessors
        around = len(self._prefix.token_ids) + most * len(self._separator)
        room = window - around - len(record.encoded.token_ids)
        return self._policy.choose(
            Candidates(
                record,
                self._catalog.chunks.predecessors(record.chunk.id, self._policy.predecessors),
                similar,
                max_tokens=min(MAX_NEIGHBOUR_TOKENS, window // 2, room),
            )
        )

    def fuse_adhoc(self, record: ChunkRecord) -> None:
        """Fuse an ad-hoc chunk behind the ingested ones most similar to it."""
        near = self._catalog.chunks.records(
            self._store.similar_to(record.chunk, self._policy.similar)
        )
        neighbours = self._neighbours(record, list(near.values()))
        if not neighbours:
            return
        fusing = _Fusing(record, tuple(neighbours))
        kvs = [self._kv.get(r.isolated_key).dense() for r in (record, *neighbours)]
        fusion = Fusion(fusing.key, kvs[0], tuple(kvs[1:]))
        ((fused, trace),) = fuse_chunks(self._executor, self._prefix, [fusion], self._separator)
        if self._kv.disk.put_adhoc(fused):
            ids = [neighbour.chunk.id for neighbour in neighbours]
            self._catalog.kv.set_fused(record.chunk.id, fused.key, ids, trace)

    def _load_isolated(self, chunk_id: str) -> ChunkKV:
        record = self._catalog.chunks.records([chunk_id])[chunk_id]
        try:
            return self._kv.get(record.isolated_key).dense()
        except KVRecordError:  # damaged since it was written
            return self._prefill_isolated([record])[0]


def _batches(
    items: Iterable[Item], record_of: Callable[[Item], ChunkRecord]
) -> Iterator[list[Item]]:
    """The items in lists whose chunks have about `PASS_TOKENS` tokens together."""
    batch: list[Item] = []
    tokens = 0
    for item in items:
        batch.append(item)
        tokens += len(record_of(item).encoded.token_ids)
        if tokens >= PASS_TOKENS:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch
