"""An ingest by workers on Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from fusionrag_integrations.documents.embedding import as_embedder
from fusionrag_integrations.documents.types import Document
from fusionrag_integrations.errors import (
    FusionRAGError,
    InvalidInputError,
    StoreNotFoundError,
)
from fusionrag_integrations.execution.admission import check_movable
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.ingest.neighbours import DEFAULT_NEIGHBOURS, NeighbourPolicy
from fusionrag_integrations.ingest.pipeline import Ingest, IngestReport
from fusionrag_integrations.ray.indexing.connecting import connected
from fusionrag_integrations.ray.indexing.ledger import Ledger, RemoteLedger, StageAccount, Tells
from fusionrag_integrations.ray.indexing.model_kv import KVPlace, ModelPlace
from fusionrag_integrations.ray.indexing.settings import Workers
from fusionrag_integrations.ray.indexing.workers import Make
from fusionrag_integrations.store.for_model import open_or_create
from fusionrag_integrations.store.kv.types import KVFormat
from fusionrag_integrations.store.objects.opening import is_url
from fusionrag_integrations.store.stored_info import stored_info
from fusionrag_integrations.support.progress import Progress

HOUR = 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class RayReport:
    """What an ingest did, and what its workers did for it.

    seconds: from the first worker's start to the end, all told. cost: of the workers for that long,
    where their price was given.
    """

    ingest: IngestReport
    stages: tuple[StageAccount, ...]
    workers: int
    seconds: float
    cost: float | None


def index_on_ray(
    documents: Iterable[Document],
    model: str | Path,
    store: str | Path,
    *,
    workers: Workers,
    address: str | None = None,
    embedding: Make = lambda: None,
    chunk_tokens: int | None = None,
    kv_format: KVFormat | None = None,
    salt: str = "",
    delete_others: bool = False,
    neighbours: NeighbourPolicy = DEFAULT_NEIGHBOURS,
    progress: Progress | None = None,
) -> RayReport:
    """Like `FusionEngine.ingest`, by workers on Ray that hold the model; this process doesn't.

    model: found under this name by every worker. store: a URL, or a directory that all machines
    see. embedding: makes one, here and in workers. The rest is as in `FusionEngine`.

    May be interrupted at any moment and called again: KV that was stored isn't computed again.
    Raises `InvalidInputError` for a store that keeps no KV, and as `connected`,
    `FusionEngine.from_pretrained` and `FusionEngine.ingest` do.
    """
    place = store if is_url(store) else Path(store).resolve()
    is_new = _is_new(place)
    with connected(address, workers), _ledger() as ledger:
        from fusionrag_integrations.ray.indexing.stages import Needed, RayWork

        started = perf_counter()
        tells = RemoteLedger(ledger)
        where = ModelPlace(model, workers.cpus)
        facts = _facts(where, workers, tells, try_it=is_new)
        made = embedding()
        wanted = facts.store_info(as_embedder(made).name, chunk_tokens, kv_format, salt, "fused")
        with open_or_create(
            *(place, wanted, made, chunk_tokens, kv_format, None, None), before=lambda: None
        ) as opened:
            where_kv = place if is_url(place) else opened.path
            shared = KVPlace(where_kv, opened.catalog.info, workers.count)
            needed = Needed(facts, where, shared, embedding, tells)
            ingest = Ingest(opened, opened.records, facts, check_usable=lambda: None)
            tell = ingest.until_closed(progress)
            work = RayWork(workers, needed, tell)
            report = ingest.run(work, documents, delete_others, neighbours, tell)
        return _report(report, ledger, workers, perf_counter() - started)


def _is_new(place: str | Path) -> bool:
    """Whether a store has to be made. Raises `InvalidInputError` for one that keeps no KV."""
    with suppress(StoreNotFoundError):
        if stored_info(place).kv == "none":
            raise InvalidInputError(
                f"The store at {place} keeps no KV, so that its documents need no workers. Index "
                "them without Ray."
            )
        return False
    return True


@contextmanager
def _ledger() -> Iterator[Any]:
    """A ledger on this machine, so that no other's loss takes it along."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(here, soft=False)
    ledger = ray.remote(num_cpus=0)(Ledger).options(scheduling_strategy=strategy).remote()
    try:
        yield ledger
    finally:
        ray.kill(ledger)  # workers that were killed would hold it for ever


def _facts(where: ModelPlace, workers: Workers, tells: Tells, *, try_it: bool) -> ModelFacts:
    """What a worker says of its model. try_it: whether it can be used, too."""
    import ray

    remote = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus)(_read_facts)
    found: ModelFacts | FusionRAGError = ray.get(remote.remote(where, tells, try_it))
    if isinstance(found, FusionRAGError):
        raise found
    return found


def _read_facts(where: ModelPlace, tells: Tells, try_it: bool) -> ModelFacts | FusionRAGError:
    started = perf_counter()
    try:
        model = where.load()
        if try_it:
            check_movable(Executor(model))
        facts = ModelFacts.of(model)
    except FusionRAGError as error:
        return error
    tells.started("model", perf_counter() - started)
    return facts


def _report(report: IngestReport, ledger: Any, workers: Workers, seconds: float) -> RayReport:
    import ray

    stages: tuple[StageAccount, ...] = ray.get(ledger.accounts.remote())
    price = workers.price_per_hour
    cost = None if price is None else price * workers.count * seconds / HOUR
    return RayReport(report, stages, workers.count, seconds, cost)
