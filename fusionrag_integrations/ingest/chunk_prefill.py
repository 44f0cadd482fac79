"""Isolated and fused KV, computed by a model and stored, several chunks in a pass."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from fusionrag_integrations.documents.chunk_record import ChunkRecord, ContextTrace
from fusionrag_integrations.errors import KVRecordError
from fusionrag_integrations.execution.chunk_kv import (
    Fusion,
    fuse_chunks,
    prefill_chunks,
    prefill_prefix,
)
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.ingest import mixtures
from fusionrag_integrations.ingest.work import ChunkTokens, Computed, FusedChunk
from fusionrag_integrations.store.corrections import Correction
from fusionrag_integrations.store.kv.kv_record import KVRecord
from fusionrag_integrations.store.kv.types import ChunkKV

PASS_TOKENS = 512  # of chunks that are computed together; more rows are multiplied no faster
NEIGHBOURS_IN_MEMORY = 128  # isolated KV cached while fusing: similar chunks share neighbours

Item = TypeVar("Item")


class KVRecords(Protocol):
    """Where KV is read and stored, such as `TieredKV`."""

    def get(self, key: str) -> KVRecord: ...

    def put(self, record: ChunkKV) -> bool: ...


class ChunkPrefill:
    """Computes KV of chunks, each behind the ingest prefix and, if fused, its neighbours."""

    def __init__(
        self,
        executor: Executor,
        kv: KVRecords,
        prefix_ids: tuple[int, ...],
        separator_ids: tuple[int, ...],
    ) -> None:
        """prefix_ids: before every chunk. separator_ids: between a chunk and its neighbours."""
        self._executor = executor
        self._kv = kv
        self._prefix = prefill_prefix(executor, prefix_ids)
        self._separator = separator_ids
        self._in_memory: OrderedDict[str, ChunkKV] = OrderedDict()  # isolated, the last ones used

    def isolated(self, chunks: Iterable[ChunkTokens]) -> Iterator[Computed]:
        """Compute and store isolated KV. Ends early where there is no room."""
        for batch in in_passes(chunks, lambda chunk: chunk):
            stored = [Computed(kv.key, self._kv.put(kv)) for kv in self._prefill(batch)]
            yield from stored
            if not all(computed.is_stored for computed in stored):
                return

    def fused(self, chunks: Iterable[FusedChunk]) -> Iterator[Computed]:
        """Compute and store fused KV. Ends early where there is no room."""
        for batch in in_passes(chunks, lambda fused: fused.chunk):
            fusions = [
                Fusion(
                    fused.key,
                    self._isolated(fused.chunk),
                    tuple(map(self._isolated, fused.neighbours)),
                )
                for fused in batch
            ]
            made = fuse_chunks(self._executor, self._prefix, fusions, self._separator)
            stored = [Computed(kv.key, self._kv.put(kv), trace) for kv, trace in made]
            yield from stored
            if not all(computed.is_stored for computed in stored):
                return

    def fused_only(self, fused: FusedChunk) -> tuple[ChunkKV, ContextTrace]:
        """Compute fused KV of stored isolated KV, and leave storing it to the caller."""
        chunk, *neighbours = (
            self._kv.get(part.key).dense() for part in (fused.chunk, *fused.neighbours)
        )
        fusion = Fusion(fused.key, chunk, tuple(neighbours))
        (made,) = fuse_chunks(self._executor, self._prefix, [fusion], self._separator)
        return made

    def correction(
        self, prompts: Sequence[Sequence[ChunkRecord]], progress: Callable[[int, int], None]
    ) -> tuple[Correction | None, tuple[str, ...]]:
        """The correction of stored fused KV, measured on mixtures of chunks."""
        return mixtures.measure_correction(
            self._executor,
            prompts,
            lambda record: self._kv.get(record.fused_key).dense(),
            progress,
        )

    def _prefill(self, chunks: Sequence[ChunkTokens]) -> list[ChunkKV]:
        tokens = {chunk.key: chunk.token_ids for chunk in chunks}
        return prefill_chunks(self._executor, self._prefix, tokens)

    def _isolated(self, chunk: ChunkTokens) -> ChunkKV:
        kv = self._in_memory.pop(chunk.key, None) or self._read_isolated(chunk)
        self._in_memory[chunk.key] = kv
        if len(self._in_memory) > NEIGHBOURS_IN_MEMORY:
            self._in_memory.popitem(last=False)
        return kv

    def _read_isolated(self, chunk: ChunkTokens) -> ChunkKV:
        try:
            return self._kv.get(chunk.key).dense()
        except KVRecordError:  # damaged since it was written
            (kv,) = self._prefill([chunk])
            self._kv.put(kv)
            return kv


def in_passes(
    items: Iterable[Item], chunk_of: Callable[[Item], ChunkTokens], tokens: int | None = None
) -> Iterator[list[Item]]:
    """The items in lists whose chunks have about so many tokens together: by default, of a pass."""
    batch: list[Item] = []
    count = 0
    for item in items:
        batch.append(item)
        count += len(chunk_of(item).token_ids)
        if count >= (PASS_TOKENS if tokens is None else tokens):
            yield batch
            batch, count = [], 0
    if batch:
        yield batch
