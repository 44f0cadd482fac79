"""Ingests by workers on a Ray of the test's own, and what comes of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from fusionrag_integrations import AnswerSettings, Document, FusionEngine
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.ray.indexing import RayReport, StageAccount, Workers, index_on_ray
from tests.cluster.ray_processes import ray_processes
from tests.conftest import all_records, town

TWO = Workers(count=2, price_per_hour=3.6)
MANY = [town(number) for number in range(120)]  # seconds of work
SECONDS = 120.0  # for something to happen, on a machine that is busy
_QUESTION = "\n\nWhat does the fox jump over?"


def indexed(
    documents: list[Document],
    model_dir: Path,
    store: Path | str,
    progress: Callable[[str, int, int], None] | None = None,
) -> RayReport:
    return index_on_ray(
        documents, model_dir, store, workers=TWO, chunk_tokens=48, progress=progress
    )


def account(report: RayReport, name: str) -> StageAccount:
    (found,) = (stage for stage in report.stages if stage.stage == name)
    return found


def untraced(engine: FusionEngine) -> list[ChunkRecord]:
    """All records; traces are rounded a little differently in other passes."""
    return [replace(record, trace=None) for record in all_records(engine.store.catalog)]


def answers(engine: FusionEngine) -> list[tuple[int, ...]]:
    texts = [record.chunk.text for record in all_records(engine.store.catalog)[:9]]
    prompts = ["\n\n".join(texts[i : i + 3]) + _QUESTION for i in (0, 3, 6)]
    made = [engine.answer(prompt, AnswerSettings(max_tokens=8)) for prompt in prompts]
    assert [(a.fused_chunks, a.isolated_chunks) for a in made] == [(2, 1)] * 3
    return [answer.token_ids for answer in made]


def same(made: FusionEngine, local: FusionEngine) -> None:
    """Documents, keys, links, the correction and answers are what an ingest here makes."""
    assert untraced(made) == untraced(local)
    assert len(untraced(made)) > 0
    for engine in (made, local):
        assert engine.store.corrections.of("")[0] is not None
    assert answers(made) == answers(local)


def workers() -> list[psutil.Process]:
    """The processes that hold the model for an ingest: those of this test's Ray alone."""
    return ray_processes("KVWorker")


def fusionrag(*arguments: object, **how: Any) -> subprocess.Popen[str]:
    """The command, in a process of its own."""
    program = "from fusionrag_integrations.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        **{"stderr": subprocess.DEVNULL} | how,
    )


def driver(files: Path, store: Path | str, model: Path, address: str) -> subprocess.Popen[str]:
    """An `index` whose workers are of the cluster at this address."""
    chosen = ("--store", store, "--model", model, "--chunk-tokens", "48", "--json")
    return fusionrag("index", files, *chosen, "--ray", address, "--workers", "2")
