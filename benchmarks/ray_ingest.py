"""How much faster two workers of an ingest on Ray are than one, and two plain processes.

The same documents are indexed into a new store by one worker and by two, in turns, each with one
thread. What is timed begins when a quarter of the chunks is done, so that loading the model isn't
counted, and ends with the last chunk. Beside it, without Ray: the passes of an ingest in one
process and in two, which is what the machine can give.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from fusionrag_integrations.bench.invented import WORDS_A_CHUNK, texts
from fusionrag_integrations.bench.machine import where_and_when
from fusionrag_integrations.documents.types import Document, Passage
from fusionrag_integrations.ray.indexing import Workers, index_on_ray
from fusionrag_integrations.support.progress import Progress

SKIPPED = 0.25  # of the chunks, isolated and fused, before the clock starts
PASS_CHUNKS = 4
PASSES = 6  # of a plain process


@dataclass(frozen=True, slots=True)
class Turn:
    """One run. chunks_per_second: isolated and fused ones, of all workers together. load: of the
    machine before it, as `os.getloadavg` has it of the last minute.
    """

    how: str
    workers: int
    chunks_per_second: float
    load: float


class _Enough(BaseException):
    """All KV is there: what follows isn't measured."""


class _Clock:
    """Times the progress of an ingest's KV."""

    def __init__(self, chunks: int) -> None:
        self._total = 2 * chunks
        self._done = {"isolated": 0, "fused": 0}
        self._first: tuple[float, int] | None = None
        self.rate = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "correct":
            raise _Enough
        if stage not in self._done:
            return
        self._done[stage] = done
        now, count = perf_counter(), sum(self._done.values())
        if self._first is None and count >= SKIPPED * self._total:
            self._first = now, count
        if self._first is not None and count > self._first[1]:
            self.rate = (count - self._first[1]) / (now - self._first[0])


def measure_ray_ingest(
    model: str | Path, chunks: int, pairs: int, progress: Progress
) -> dict[str, Any]:
    """Rates of one worker and of two, in turns, `pairs` times each."""
    passages = tuple(Passage(text) for text in texts(chunks))
    documents = [Document(text="", id=f"d{i}", passages=(p,)) for i, p in enumerate(passages)]
    turns: list[Turn] = []
    for number in range(pairs):
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            progress("turns", len(turns), 4 * pairs)
            turns.append(_by_ray(model, documents, workers))
            progress("turns", len(turns), 4 * pairs)
            turns.append(_by_processes(model, [p.text for p in passages], workers))
    progress("turns", len(turns), 4 * pairs)
    speedups = {
        how: median(_rates(turns, how, 2)) / median(_rates(turns, how, 1))
        for how in ("ray", "processes")
    }
    return where_and_when() | {
        "model": Path(model).name,
        "chunks": chunks,
        "words_a_chunk": WORDS_A_CHUNK,
        "cores": os.cpu_count(),
        "speedup": speedups,
        "turns": [asdict(turn) for turn in turns],
    }


def _rates(turns: Sequence[Turn], how: str, workers: int) -> list[float]:
    return [t.chunks_per_second for t in turns if (t.how, t.workers) == (how, workers)]


def _by_ray(model: str | Path, documents: Sequence[Document], workers: int) -> Turn:
    load = os.getloadavg()[0]
    clock = _Clock(len(documents))
    with TemporaryDirectory() as directory:
        store = Path(directory) / "store"
        with suppress(_Enough):
            index_on_ray(documents, model, store, workers=Workers(workers), progress=clock)
    return Turn("ray", workers, clock.rate, load)


def _by_processes(model: str | Path, passages: Sequence[str], workers: int) -> Turn:
    load = os.getloadavg()[0]
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=_passes, args=(model, passages, barrier, times))
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    spent = [times.get() for _ in processes]
    for process in processes:
        process.join()
    done = PASSES * PASS_CHUNKS
    return Turn("processes", workers, sum(done / seconds for seconds in spent), load)


def _passes(
    model: str | Path, passages: Sequence[str], barrier: Barrier, times: Queue[float]
) -> None:
    """Isolated passes over some chunks, all processes at the same time."""
    import torch

    from fusionrag_integrations.execution.chunk_kv import prefill_chunks, prefill_prefix
    from fusionrag_integrations.execution.executor import Executor
    from fusionrag_integrations.execution.hf.model import CausalModel

    torch.set_num_threads(1)
    loaded = CausalModel.load(model)
    executor = Executor(loaded)
    prefix = prefill_prefix(executor, range(14))
    batches = _batches(loaded.tokenizer(list(passages), add_special_tokens=False).input_ids)
    prefill_chunks(executor, prefix, next(batches))  # the first one warms up
    barrier.wait()
    started = perf_counter()
    for _ in range(PASSES):
        prefill_chunks(executor, prefix, next(batches))
    times.put(perf_counter() - started)


def _batches(token_ids: Sequence[Sequence[int]]) -> Iterator[dict[str, Sequence[int]]]:
    at = 0
    while True:
        chosen = [token_ids[(at + i) % len(token_ids)] for i in range(PASS_CHUNKS)]
        yield {str(i): ids for i, ids in enumerate(chosen)}
        at += PASS_CHUNKS
