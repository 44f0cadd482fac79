"""An engine's parts, a model and its store, which are opened and closed together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.embedding import as_embedder
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.admission import check_movable
from fusionrag_integrations.execution.devices import device_name, free_bytes
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.execution.own_attention import OwnExecutor
from fusionrag_integrations.execution.placement import to_resident
from fusionrag_integrations.ingest.adhoc import fuse_adhoc
from fusionrag_integrations.ingest.in_process import InProcess
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.serving.full_attention import FullAttention
from fusionrag_integrations.serving.pipeline import Pipeline
from fusionrag_integrations.serving.steps import RequestSteps
from fusionrag_integrations.store.calibration import (
    Calibration,
    first_break_even,
    first_calibration,
)
from fusionrag_integrations.store.corrections import Correction
from fusionrag_integrations.store.for_model import kept_kv, open_or_create
from fusionrag_integrations.store.kv.base import KVFiles
from fusionrag_integrations.store.kv.disk_budget import Budgets, free_for_copies
from fusionrag_integrations.store.kv.tiered_kv import MoveToDevice, TieredKV
from fusionrag_integrations.store.kv.types import ChunkKV, KeptKV, KVFormat, LayeredKV
from fusionrag_integrations.store.layout import CALIBRATION_FILE
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.store.vector_index.base import GivenIndex
from fusionrag_integrations.support.threads import Closable

Opener = Callable[..., Store]
DEFAULT_BUDGETS = Budgets()


@dataclass(frozen=True, slots=True, eq=False)
class EngineParts(Closable):
    """A model and its store, and what follows from both.

    executor: an `OwnExecutor` where the store keeps no KV. facts: what an ingest needs to know of
    the model. break_even: reuse pays for prompts of this many tokens; 0 if it wasn't measured.
    start_bytes: of KV of prompts' starts that is kept. request_bytes: of that of requests at work.
    """

    executor: Executor | OwnExecutor
    store: Store
    kv: TieredKV
    facts: ModelFacts
    calibration: Calibration | None
    break_even: int
    start_bytes: int
    request_bytes: float

    @classmethod
    def open(
        cls,
        model: PlainModel,
        place: str | Path,
        *,
        embedding: object | None,
        chunk_tokens: int | None,
        kv_format: KVFormat | None,
        salt: str,
        budgets: Budgets,
        index: GivenIndex | None,
        kv_files: KVFiles | None,
        opener: Opener = open_or_create,
    ) -> Self:
        """Open the store at a place, or create it. See `FusionEngine.from_pretrained`.

        opener: opens it, as `open_or_create` does.
        """
        kept = kept_kv(place, None if isinstance(model, CausalModel) else "none")
        if kept == "none" and kv_format is not None:
            raise InvalidInputError(
                f"kv_format is {kv_format!r}, and kv='none' keeps no KV; leave one of them out."
            )
        facts = ModelFacts.of(model)
        name = as_embedder(embedding).name
        wanted = facts.store_info(name, chunk_tokens, kv_format, salt, kept)
        executor, try_reuse, to_device = _runner(model, kept)
        with ExitStack() as opened:
            store = opener(
                *(place, wanted, embedding, chunk_tokens, kv_format, index, kv_files),
                before=try_reuse,
            )
            opened.enter_context(store)
            beside_weights = (model.directory / CALIBRATION_FILE).resolve()  # the hub's has links
            measured = [store.path / CALIBRATION_FILE, beside_weights]
            kv = TieredKV(
                *(store.path, store.records, _of_this_disk(budgets, store)),
                *(model.device, to_device, store.copies),
            )
            parts = cls(
                executor=executor,
                store=store,
                kv=kv,
                facts=facts,
                calibration=first_calibration(
                    measured, facts.signature, model.name, model.num_layers
                ),
                break_even=first_break_even(measured, facts.signature, device_name(model.device)),
                start_bytes=budgets.starts,
                request_bytes=(
                    free_bytes(model.device) / 2 if budgets.requests is None else budgets.requests
                ),
            )
            opened.pop_all()
        return parts

    def steps(self, on_hot: Callable[[ChunkRecord], None]) -> RequestSteps:
        """The steps of requests. on_hot: called with ad-hoc chunks that are used often."""
        if not isinstance(self.executor, Executor):
            return FullAttention(self.executor, self.store.catalog, self.kv)
        return Pipeline(
            self.executor,
            self.store.catalog,
            self.kv,
            self.facts.prefix_ids,
            self.store.corrections,
            self.calibration,
            self.break_even,
            on_hot=on_hot,
            start_bytes=self.start_bytes,
        )

    def ingest_work(self) -> InProcess:
        """What an ingest computes, by this model."""
        return InProcess(self.executor, self.kv, self.facts, self.store.catalog.info)

    def fuse_adhoc(self, record: ChunkRecord) -> None:
        """Fuse an ad-hoc chunk, unless the store is being changed or keeps no KV."""
        if isinstance(self.executor, Executor):
            fuse_adhoc(self.ingest_work(), self.store, self.kv, self.facts, record)

    def close(self) -> None:
        """Release the memory of the tiers, and the store. May be called again."""
        self.kv.close()
        self.store.close()


def _of_this_disk(budgets: Budgets, store: Store) -> Budgets:
    """The budgets, where copies of shared KV may at most take half of what is free."""
    if store.copies is None or budgets.disk is not None:
        return budgets
    return replace(budgets, disk=free_for_copies(store.path, store.copies))


def model_class(store: str | Path, kv: KeptKV | None) -> type[PlainModel]:
    """What a model is loaded as, for the store at a path. Raises as `kept_kv` does."""
    return PlainModel if kept_kv(store, kv) == "none" else CausalModel


def _runner(
    model: PlainModel, kept: KeptKV
) -> tuple[Executor | OwnExecutor, Callable[[], None], MoveToDevice]:
    """What runs a model, the trial before a store is made for it, and how its KV is moved."""
    if isinstance(model, CausalModel) and kept != "none":
        executor = Executor(model)
        return executor, partial(check_movable, executor), partial(to_resident, model)
    return OwnExecutor(model), _nothing_to_try, _nothing_to_move


def _nothing_to_try() -> None:
    pass


def _nothing_to_move(kv: LayeredKV, correction: Correction | None) -> ChunkKV:
    raise RuntimeError("A store that keeps no KV was asked for some.")
