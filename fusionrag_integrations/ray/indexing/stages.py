"""The work of an ingest as datasets, each with a pool of workers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.data
import ray.util.annotations
import torch

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.errors import FusionRAGError, InvalidInputError
from fusionrag_integrations.ingest.chunk_prefill import PASS_TOKENS, in_passes
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.ingest.work import ChangedDocument, ChunkTokens, Computed, FusedChunk
from fusionrag_integrations.ray.indexing.ledger import Tells, told
from fusionrag_integrations.ray.indexing.model_kv import KVPlace, ModelKV, ModelPlace
from fusionrag_integrations.ray.indexing.settings import Workers
from fusionrag_integrations.ray.indexing.workers import (
    KVWorker,
    Make,
    TextWorker,
    Worker,
)
from fusionrag_integrations.store.changes import Update
from fusionrag_integrations.store.corrections import Correction
from fusionrag_integrations.support.progress import Progress

TASK_PASSES = 4  # of the model in a batch: more would be done twice where a worker is lost
TASK_TEXT = 1 << 17  # characters of the documents in a batch
RETRIES = 4  # of a batch, or of a start, whose worker was lost: one that kills each has an end

Measured = tuple[tuple[np.ndarray, np.ndarray] | None, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Needed:
    """What workers get. embedding: makes one where it is needed. tells: where they tell what they
    do.
    """

    facts: ModelFacts
    model: ModelPlace
    place: KVPlace
    embedding: Make
    tells: Tells


class RayWork:
    """`IngestWork` by pools of workers, one stage after another, each with the model anew.

    Ray Data holds back what a pool isn't ready for, and does a lost worker's batches again.
    """

    def __init__(self, workers: Workers, needed: Needed, progress: Progress) -> None:
        self._workers = workers
        self._needed = needed
        self._progress = progress

    def split(self, documents: Iterable[ChangedDocument]) -> Iterator[Update]:
        """Documents as chunks with tokens and vectors."""
        blocks: list[Any] = []
        batch: list[ChangedDocument] = []
        count = length = 0
        failed: InvalidInputError | None = None
        try:
            for changed in documents:
                batch.append(changed)
                count += 1
                length += len(changed.document.text)
                if length >= TASK_TEXT:
                    blocks.append(_block(batch))
                    batch, length = [], 0
        except InvalidInputError as error:  # the documents before the invalid one are done
            failed = error
        if batch:
            blocks.append(_block(batch))
        needed = self._needed
        given = (needed.facts, needed.place.info, needed.embedding)
        updates = self._results(blocks, TextWorker, given, {"num_cpus": 1})
        for done, update in enumerate(updates, start=1):
            yield update
            self._progress("text", done, count)
        if failed is not None:
            raise failed

    def kv(
        self, isolated: Iterable[ChunkTokens], fused: Iterable[FusedChunk]
    ) -> Iterator[Computed]:
        """Isolated KV first: what is fused waits for it."""
        tokens = TASK_PASSES * PASS_TOKENS
        blocks: list[Any] = []
        count = 0
        for batch in in_passes(isolated, lambda chunk: chunk, tokens):
            blocks.append(_block(batch))
            count += len(batch)
        blocks += map(_block, in_passes(fused, lambda chunk: chunk.chunk, tokens))
        given = (self._needed.model, self._needed.place, count)
        return self._results(blocks, KVWorker, given, self._resources)

    def correction(
        self, mixtures: Sequence[Sequence[ChunkRecord]], progress: Callable[[int, int], None]
    ) -> tuple[Correction | None, tuple[str, ...]]:
        """Measured by one worker."""
        progress(0, len(mixtures))
        remote = ray.remote(**self._resources)(_measure)
        needed = self._needed
        found = ray.get(remote.remote(needed.model, needed.place, needed.tells, mixtures))
        if isinstance(found, FusionRAGError):
            raise found
        progress(len(mixtures), len(mixtures))
        arrays, chunk_ids = found
        return None if arrays is None else Correction(*map(torch.tensor, arrays)), chunk_ids

    @property
    def _resources(self) -> dict[str, float]:
        return {"num_cpus": self._workers.cpus, "num_gpus": self._workers.gpus}

    def _results(
        self,
        blocks: list[Any],
        kind: type[Worker],
        given: tuple[Any, ...],
        resources: dict[str, float],
    ) -> Iterator[Any]:
        """The results of a stage's batches, as they are done. given: to workers."""
        if not blocks:
            return
        size = min(self._workers.count, len(blocks))
        with warnings.catch_warnings():
            # Deprecated, but there is no other way yet to say how often a batch is tried again.
            warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
            dataset = ray.data.from_pandas_refs(blocks).map_batches(
                kind,
                batch_size=None,
                batch_format="numpy",
                compute=ray.data.ActorPoolStrategy(size=size),
                fn_constructor_args=(self._needed.tells, *given),
                ray_remote_args_fn=lambda: {"max_task_retries": RETRIES},
                **resources,
            )
        dataset.context.enable_progress_bars = False
        dataset.context.max_consecutive_actor_init_deaths = RETRIES
        for batch in dataset.iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=0
        ):
            for result in batch["result"]:
                if isinstance(result, FusionRAGError):
                    raise result
                yield result


def _measure(
    model: ModelPlace, place: KVPlace, tells: Tells, mixtures: Sequence[Sequence[ChunkRecord]]
) -> Measured | FusionRAGError:
    """A correction's keys and values, and the chunks that it is a mean over; or what failed."""
    started = perf_counter()
    try:
        with ModelKV(model, place) as opened:
            tells.started("correct", perf_counter() - started)
            with told(tells, "correct", len(mixtures)):
                made, chunk_ids = opened.prefill.correction(mixtures, lambda done, total: None)
    except FusionRAGError as error:
        return error
    return None if made is None else (made.keys.numpy(), made.values.numpy()), chunk_ids


def _block(tasks: Sequence[Any]) -> Any:
    """A batch in the cluster's memory, so that it needn't stay in this process's."""
    return ray.put(pd.DataFrame({"task": pd.Series(list(tasks), dtype=object)}))
