"""How fast a model ingests on this machine: a pass of each kind over some chunks, timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.execution.chunk_kv import (
    Fusion,
    fuse_chunks,
    prefill_chunks,
    prefill_prefix,
)
from fusionrag_integrations.execution.devices import settle
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.ingest.chunk_prefill import PASS_TOKENS
from fusionrag_integrations.ingest.neighbours import (
    DEFAULT_NEIGHBOURS,
    MAX_NEIGHBOUR_TOKENS,
    Candidates,
)
from fusionrag_integrations.prompt import SEPARATOR, ingest_prefix
from fusionrag_integrations.store.kv.types import ChunkKV
from fusionrag_integrations.support.progress import Progress

KEY = "0" * 64  # as long as every key


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds to prefill one token of a chunk alone, and behind its neighbours."""

    isolated: float
    fused: float


class Sample:
    """The first chunks: enough to fill a pass, and to be each other's neighbours."""

    def __init__(self) -> None:
        self.records: list[ChunkRecord] = []
        self._tokens = 0

    def add(self, record: ChunkRecord) -> None:
        """Add a chunk while more are needed: of one scope, without repeats."""
        if len(self.records) >= DEFAULT_NEIGHBOURS.similar and self._tokens >= PASS_TOKENS:
            return
        scopes = {known.chunk.scope for known in self.records} or {record.chunk.scope}
        known = {known.isolated_key for known in self.records}
        if record.chunk.scope in scopes and record.isolated_key not in known:
            self.records.append(record)
            self._tokens += len(record.encoded.token_ids)


def neighbour_tokens(model: CausalModel) -> int:
    """How many tokens a chunk's neighbours have at most, together."""
    return min(MAX_NEIGHBOUR_TOKENS, model.context_window // 2)


def measure_pace(executor: Executor, sample: Sequence[ChunkRecord], progress: Progress) -> Pace:
    """Time a pass that prefills chunks of the sample, and one that fuses them behind others."""
    model = executor.model
    progress("time", 0, 2)
    before, between = (
        model.tokenizer(text, add_special_tokens=False).input_ids
        for text in (ingest_prefix(model.tokenizer), SEPARATOR)
    )
    prefix = prefill_prefix(executor, before)

    def prefill(records: Sequence[ChunkRecord]) -> list[ChunkKV]:
        tokens = {record.isolated_key: record.encoded.token_ids for record in records}
        return prefill_chunks(executor, prefix, tokens)

    timed = _one_pass(sample)
    isolated = _seconds(model.device, lambda: prefill(timed)) / _tokens(timed)
    progress("time", 1, 2)
    kvs = {kv.key: kv for record in sample for kv in prefill([record])}
    fusions: list[Fusion] = []
    for record in timed:
        near = Candidates(record, (), sample, neighbour_tokens(model))
        before = tuple(kvs[other.isolated_key] for other in DEFAULT_NEIGHBOURS.choose(near))
        if before:
            fusions.append(Fusion(KEY, kvs[record.isolated_key], before))
    fused = _seconds(
        model.device, lambda: fuse_chunks(executor, prefix, fusions, between)
    ) / _tokens(timed)
    progress("time", 2, 2)
    return Pace(isolated, fused)


def _one_pass(sample: Sequence[ChunkRecord]) -> list[ChunkRecord]:
    """As many chunks as ingest computes together."""
    taken: list[ChunkRecord] = []
    for record in sample:
        if _tokens(taken) < PASS_TOKENS:
            taken.append(record)
    return taken


def _tokens(records: Sequence[ChunkRecord]) -> int:
    return sum(len(record.encoded.token_ids) for record in records)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """How long the second run takes; the first one warms up."""
    work()
    settle(device)
    started = perf_counter()
    work()
    settle(device)
    return perf_counter() - started
