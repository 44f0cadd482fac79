"""What an ingest computes, done by this process's model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.own_attention import OwnExecutor
from fusionrag_integrations.ingest.chunk_prefill import ChunkPrefill
from fusionrag_integrations.ingest.documents import Splitter
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.ingest.work import ChangedDocument, ChunkTokens, Computed, FusedChunk
from fusionrag_integrations.store.changes import Update
from fusionrag_integrations.store.corrections import Correction
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.tiered_kv import TieredKV


class InProcess:
    """`IngestWork` one step after the other. Of one ingest: it holds KV that was used last."""

    def __init__(
        self, executor: Executor | OwnExecutor, kv: TieredKV, facts: ModelFacts, info: StoreInfo
    ) -> None:
        """executor: one that keeps no KV splits documents alone."""
        self._executor = executor
        self._kv = kv
        self._facts = facts
        self._splitter = Splitter(facts, info)

    @cached_property
    def prefill(self) -> ChunkPrefill:
        """What runs the model. Raises `RuntimeError` where no KV is kept."""
        if not isinstance(self._executor, Executor):
            raise RuntimeError("An ingest that keeps no KV asked for some.")
        facts = self._facts
        return ChunkPrefill(self._executor, self._kv, facts.prefix_ids, facts.separator_ids)

    def split(self, documents: Iterable[ChangedDocument]) -> Iterator[Update]:
        return map(self._splitter.split, documents)

    def kv(
        self, isolated: Iterable[ChunkTokens], fused: Iterable[FusedChunk]
    ) -> Iterator[Computed]:
        yield from self.prefill.isolated(isolated)
        yield from self.prefill.fused(fused)

    def correction(
        self, mixtures: Sequence[Sequence[ChunkRecord]], progress: Callable[[int, int], None]
    ) -> tuple[Correction | None, tuple[str, ...]]:
        return self.prefill.correction(mixtures, progress)
