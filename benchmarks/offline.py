"""What ingest costs a chunk: its isolated pass, its fused pass behind neighbours, and the whole.

And what a token of an answer costs, over KV that was put in place and under full attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count, pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from fusionrag_integrations.bench.clock import times_ms
from fusionrag_integrations.bench.invented import texts
from fusionrag_integrations.bench.machine import described, where_and_when
from fusionrag_integrations.documents.types import Document, Passage
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.execution.chunk_kv import (
    Fusion,
    fuse_chunks,
    prefill_chunks,
    prefill_prefix,
)
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.ingest.chunk_prefill import PASS_TOKENS
from fusionrag_integrations.store.kv.types import ChunkKV
from fusionrag_integrations.support.progress import Progress

PREFIX_TOKENS = 14
PASSAGES = 4  # of a document


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Medians in milliseconds a chunk. ratio: fused over isolated, one chunk a pass.

    together: chunks in a pass of `isolated_together_ms` and `fused_together_ms`.
    """

    chunk_tokens: int
    neighbours: int
    isolated_ms: float
    fused_ms: float
    ratio: float
    together: int
    isolated_together_ms: float
    fused_together_ms: float


@dataclass(frozen=True, slots=True)
class IngestTimes:
    """A whole ingest of invented documents into an empty store on disk, milliseconds a chunk.

    stage_ms: by stage of the ingest, as its progress names them; their sum is `chunk_ms`.
    """

    chunks: int
    chunk_tokens: int
    chunk_ms: float
    stage_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Medians in milliseconds a token, over a prompt of `context` tokens."""

    context: int
    placed_ms: float
    dense_ms: float


def measure_offline(
    model: CausalModel, chunk_tokens: int, neighbours: int, repeat: int
) -> dict[str, Any]:
    """The passes over chunks of random tokens: over one, and over as many as ingest takes."""
    executor = Executor(model)
    together = max(1, PASS_TOKENS // chunk_tokens)
    prefix = prefill_prefix(executor, _tokens(model, PREFIX_TOKENS))
    tokens = {
        f"{seed:02x}": _tokens(model, chunk_tokens, seed)
        for seed in range(max(together, neighbours + 1))
    }
    isolated = prefill_chunks(executor, prefix, tokens)
    fusions = [_fusion(isolated, chunk, neighbours) for chunk in range(together)]

    def pass_ms(work: Callable[[int], object], chunks: int) -> float:
        return median(times_ms(lambda: work(chunks), repeat, model.device)) / chunks

    def alone(chunks: int) -> object:
        return prefill_chunks(executor, prefix, dict(list(tokens.items())[:chunks]))

    def behind(chunks: int) -> object:
        return fuse_chunks(executor, prefix, fusions[:chunks])

    one, fused = pass_ms(alone, 1), pass_ms(behind, 1)
    times = PassTimes(
        chunk_tokens,
        neighbours,
        one,
        fused,
        fused / one,
        together,
        pass_ms(alone, together),
        pass_ms(behind, together),
    )
    return where_and_when() | described(model) | asdict(times)


def _fusion(isolated: list[ChunkKV], chunk: int, neighbours: int) -> Fusion:
    others = [kv for number, kv in enumerate(isolated) if number != chunk]
    return Fusion("ff", isolated[chunk], tuple(others[:neighbours]))


def measure_ingest(model: CausalModel, chunks: int, progress: Progress) -> dict[str, Any]:
    """Everything that `fusionrag index` does with documents of `chunks` passages in all."""
    passages = [Passage(text) for text in texts(chunks)]
    documents = [
        Document(f"{start}", passages=tuple(passages[start : start + PASSAGES]))
        for start in range(0, chunks, PASSAGES)
    ]
    clock = _Stages(progress)
    with (
        TemporaryDirectory(prefix="fusionrag-ingest-") as directory,
        FusionEngine.open(model, Path(directory)) as engine,
    ):
        report = engine.ingest(documents, progress=clock)
        catalog = engine.store.catalog
        tokens = sum(
            len(record.encoded.token_ids)
            for record in catalog.chunks.records(catalog.chunks.ids()).values()
        )
    stages = clock.ms_until(report.seconds)
    times = IngestTimes(
        report.chunks,
        tokens // report.chunks,
        1e3 * report.seconds / report.chunks,
        {stage: ms / report.chunks for stage, ms in stages.items()},
    )
    return where_and_when() | described(model) | asdict(times)


class _Stages:
    """Passes progress on, and notes when each stage began."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._started = perf_counter()
        self._begun: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._begun.setdefault(stage, perf_counter() - self._started)
        self._progress(stage, done, total)

    def ms_until(self, seconds: float) -> dict[str, float]:
        """How long each stage went, the first from the start, the last until `seconds`."""
        begins = [0.0, *list(self._begun.values())[1:], seconds]
        spans = pairwise(begins)
        return {
            stage: 1e3 * (end - begin)
            for stage, (begin, end) in zip(self._begun, spans, strict=True)
        }


def measure_decode(model: CausalModel, context: int, repeat: int) -> dict[str, Any]:
    """One token after the other behind a prompt of random tokens."""
    executor = Executor(model)
    buffer = executor.new_buffer(context + repeat + 1)
    buffer.keys.normal_()
    buffer.values.normal_()
    placed_step = executor.appender(buffer, context)
    _, dense_step = executor.prefill_dense(_tokens(model, context))
    tokens = count(1)
    placed = median(times_ms(lambda: placed_step(next(tokens)), repeat, model.device))
    dense = median(times_ms(lambda: dense_step(next(tokens)), repeat, model.device))
    return where_and_when() | described(model) | asdict(DecodeTimes(context, placed, dense))


def _tokens(model: CausalModel, number: int, seed: int = 0) -> tuple[int, ...]:
    draw = torch.Generator().manual_seed(seed)
    most = int(model.hf.config.vocab_size)
    return tuple(torch.randint(most, (number,), generator=draw).tolist())
