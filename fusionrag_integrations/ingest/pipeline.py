"""Documents -> chunks -> stored KV: the order of the offline steps.

Each step computes only what is missing, so an interrupted ingest continues where it stopped, and
what was indexed before stays usable throughout:

catalog    chunks are embedded; a changed document replaces its old chunks, and fused KV that was
           computed behind those is dropped
embed      chunks that an interrupted ingest didn't add to the vector index
isolated   KV of every chunk that has none
fused      KV behind each chunk's neighbours, then the catalog entry that makes it valid
correct    how fused KV deviates in prompts, measured on a few of the store's own chunks
collect    records that no chunk uses any more are deleted
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter

from fusionrag_integrations.documents.types import Document, DocumentKey
from fusionrag_integrations.ingest.copied_documents import copy_documents
from fusionrag_integrations.ingest.corrections import measure_corrections
from fusionrag_integrations.ingest.documents import DocumentUpdates
from fusionrag_integrations.ingest.missing_kv import MissingKV
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.ingest.neighbours import NeighbourPolicy
from fusionrag_integrations.ingest.work import IngestWork
from fusionrag_integrations.store.deletion import DeletableKV, collect_garbage
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.support.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did. Chunks that have KV already are not computed again.

    without_room: chunks that have no KV, since the disk budget is full.
    """

    documents_new: int
    documents_changed: int
    documents_unchanged: int
    documents_deleted: int
    chunks: int
    isolated_computed: int
    fused_computed: int
    seconds: float
    without_room: int = 0


class Ingest:
    """Brings a store up to date.

    Each call acquires the store's write lock, and raises `StoreError` where another holds it.
    """

    def __init__(
        self,
        store: Store,
        kv: DeletableKV,
        facts: ModelFacts,
        check_usable: Callable[[], object],
    ) -> None:
        """kv: of the store. check_usable: raises if the engine was closed, so that an ingest in
        progress ends.
        """
        self._store = store
        self._kv = kv
        self._facts = facts
        self._check_usable = check_usable

    def run(
        self,
        work: IngestWork,
        documents: Iterable[Document],
        delete_others: bool,
        policy: NeighbourPolicy,
        progress: Progress | None,
    ) -> IngestReport:
        """Bring the store up to date with `documents`.

        Its other documents stay as they are, or are deleted once all of `documents` are stored.
        work: what computes, of this ingest alone.
        """
        progress = self.until_closed(progress)

        def update() -> tuple[Mapping[DocumentKey, str], int]:
            updated = DocumentUpdates(work, self._store, progress).update(documents)
            deleted = 0
            if delete_others:
                others = set(self._store.catalog.documents.all()) - updated.keys()
                deleted = self._store.changes.delete(sorted(others))
            return updated, deleted

        with self._store.writing():
            return self._run(work, update, policy, progress)

    def copy(
        self, work: IngestWork, source: Store, policy: NeighbourPolicy, progress: Progress | None
    ) -> IngestReport:
        """Bring the store to the documents of another, whose texts and vectors are kept."""
        progress = self.until_closed(progress)

        def update() -> tuple[Mapping[DocumentKey, str], int]:
            return copy_documents(source, self._store, self._facts, progress), 0

        with self._store.writing():
            return self._run(work, update, policy, progress)

    def until_closed(self, progress: Progress | None) -> Progress:
        """A progress callback that raises if another thread has closed the engine."""

        def checked_progress(stage: str, done: int, total: int) -> None:
            self._check_usable()
            if progress is not None:
                progress(stage, done, total)

        return checked_progress

    def _run(
        self,
        work: IngestWork,
        update: Callable[[], tuple[Mapping[DocumentKey, str], int]],
        policy: NeighbourPolicy,
        progress: Progress,
    ) -> IngestReport:
        """update: changes the documents; returns how each changed, and how many were deleted."""
        started = perf_counter()
        changes, catalog = self._store.changes, self._store.catalog
        with changes.begin(self._collect):
            updated, deleted = update()
            changes.embed_missing(progress)
            isolated, fused, without_room = self._compute_kv(work, policy, progress)
            self._collect()
        counts = Counter(updated.values())
        return IngestReport(
            documents_new=counts["new"],
            documents_changed=counts["changed"],
            documents_unchanged=counts["unchanged"],
            documents_deleted=deleted,
            chunks=len(catalog.chunks.ids()),
            isolated_computed=isolated,
            fused_computed=fused,
            seconds=perf_counter() - started,
            without_room=without_room,
        )

    def _compute_kv(
        self, work: IngestWork, policy: NeighbourPolicy, progress: Progress
    ) -> tuple[int, int, int]:
        """Of how many chunks isolated and fused KV was computed, and how many found no room."""
        if self._store.catalog.info.kv == "none":
            return 0, 0, 0
        missing = MissingKV(work, self._store, self._facts, policy, progress)
        isolated, fused = missing.compute()
        measure_corrections(work, self._store, self._facts.context_window, progress)
        if missing.full:
            logger.warning("The disk's budget is full: some chunks' KV was not kept.")
        return isolated, fused, missing.without_kv() if missing.full else 0

    def _collect(self) -> None:
        collect_garbage(self._store, self._kv)
