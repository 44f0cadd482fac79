"""What runs in workers: callables on a batch, which Ray Data holds in its pools of actors.

A batch's column "task" holds plain values of `ingest/work.py`, and so does the column "result" of
what comes back. An error of this package's comes back as a result: it is told as it was raised.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from time import monotonic, perf_counter, sleep
from typing import Any

import numpy as np

from fusionrag_integrations.documents.embedding import (
    as_embedder,
    as_vector,
    probe,
    same_embedding,
)
from fusionrag_integrations.errors import FusionRAGError, StoreMismatchError
from fusionrag_integrations.ingest.documents import Splitter
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.ingest.work import ChangedDocument, ChunkTokens, Computed, FusedChunk
from fusionrag_integrations.ray.indexing.ledger import Done, Tells, told
from fusionrag_integrations.ray.indexing.model_kv import KVPlace, ModelKV, ModelPlace
from fusionrag_integrations.store.changes import EMBEDDING_BATCH, Update
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.support.batches import in_batches

PATIENCE = 300.0  # seconds, for isolated KV that other workers compute
PAUSE = 0.05  # seconds, between looks

Batch = Mapping[str, Any]
Make = Callable[[], object | None]
"""Makes an embedding where it is needed; None is the built-in one."""


class Worker:
    """A worker, which gets ready when it is made. name: of what it does, for the ledger."""

    name: str

    def __init__(self, tells: Tells) -> None:
        self._tells = tells
        self._failed: FusionRAGError | None = None
        started = perf_counter()
        try:
            self.prepare()
        except FusionRAGError as error:  # told with the first batch
            self._failed = error
        tells.started(self.name, perf_counter() - started)

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        """Do a batch; where it fails, its one result is the error."""
        tasks = list(batch["task"])
        if self._failed is not None:
            return _column([self._failed])
        try:
            self.wait(tasks)
            with told(self._tells, self.stage(tasks), len(tasks)) as done:
                return _column(self.results(tasks, done))
        except FusionRAGError as error:
            return _column([error])

    def stage(self, tasks: Sequence[Any]) -> str:
        """Under which name a batch is counted."""
        return self.name

    def wait(self, tasks: Sequence[Any]) -> None:
        """Wait for what a batch needs of other workers."""

    def prepare(self) -> None:
        """Get ready, which may take long."""
        raise NotImplementedError

    def results(self, tasks: Sequence[Any], done: Done) -> Iterable[object]:
        """The results of tasks; `done` is filled in."""
        raise NotImplementedError


class TextWorker(Worker):
    """Splits documents, tokenizes their chunks and embeds them. Needs no weights.

    An embedding that isn't the store's is a `StoreMismatchError`.
    """

    name = "text"

    def __init__(self, tells: Tells, facts: ModelFacts, info: StoreInfo, embedding: Make) -> None:
        self._facts, self._info, self._make = facts, info, embedding
        super().__init__(tells)

    def prepare(self) -> None:
        self._splitter = Splitter(self._facts, self._info)
        self._embedder = as_embedder(self._make())
        if not same_embedding(self._info.probes, probe(self._embedder)):
            raise StoreMismatchError(
                f"On {socket.gethostname()}, the embedding {self._embedder.name!r} makes other "
                f"vectors of the same texts than {self._info.embedding!r}, which the store is for. "
                "All machines need the same embedding: install the same module, model and versions "
                "on each."
            )

    def results(self, tasks: Sequence[ChangedDocument], done: Done) -> list[Update]:
        updates = [self._splitter.split(task) for task in tasks]
        chunks = [record.chunk for update in updates for record in update.records]
        vectors: dict[str, list[float]] = {}
        for batch in in_batches(chunks, EMBEDDING_BATCH):
            made = self._embedder.embed_documents([chunk.embedding_text for chunk in batch])
            vectors.update(zip((c.id for c in batch), map(as_vector, made), strict=True))
        return [
            replace(update, vectors={r.chunk.id: vectors[r.chunk.id] for r in update.records})
            for update in updates
        ]


class KVWorker(Worker):
    """Holds the model, and computes KV. A batch is of one kind.

    Isolated KV that is there already, of another worker that was lost, perhaps, isn't computed
    again; fused KV is, since nobody knows its trace. It waits for the last isolated KV; what isn't
    there within `PATIENCE`, since its worker has to start anew, it computes itself.
    """

    name = "model"

    def __init__(self, tells: Tells, model: ModelPlace, place: KVPlace, isolated: int) -> None:
        """isolated: of how many chunks isolated KV is computed by all workers."""
        self._model, self._place = model, place
        self._isolated_left = isolated > 0
        self._isolated_count = isolated
        super().__init__(tells)

    def wait(self, tasks: Sequence[Any]) -> None:
        ended = monotonic() + PATIENCE
        while self._isolated_left and isinstance(tasks[0], FusedChunk) and monotonic() < ended:
            self._isolated_left = self._tells.completed("isolated") < self._isolated_count
            if self._isolated_left:
                sleep(PAUSE)

    def prepare(self) -> None:
        self._opened = ModelKV(self._model, self._place)

    def stage(self, tasks: Sequence[Any]) -> str:
        return "fused" if isinstance(tasks[0], FusedChunk) else "isolated"

    def results(self, tasks: Sequence[Any], done: Done) -> list[Computed]:
        before = self._opened.kv.written
        fused = isinstance(tasks[0], FusedChunk)
        computed = list(self._opened.prefill.fused(tasks)) if fused else self._isolated(tasks, done)
        done.kv_bytes = self._opened.kv.written - before
        return computed

    def _isolated(self, tasks: Sequence[ChunkTokens], done: Done) -> list[Computed]:
        there = self._opened.kv.existing([task.key for task in tasks])
        missing = [task for task in tasks if task.key not in there]
        found = [Computed(task.key) for task in tasks if task.key in there]
        done.found = len(found)
        return found + list(self._opened.prefill.isolated(missing))


def _column(results: Iterable[object]) -> dict[str, np.ndarray]:
    listed = list(results)
    column = np.empty(len(listed), dtype=object)
    column[:] = listed
    return {"result": column}
