"""Each scope's correction: how its fused KV deviates in prompts, measured on its own chunks."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.errors import KVRecordError
from fusionrag_integrations.ingest import mixtures
from fusionrag_integrations.ingest.work import IngestWork
from fusionrag_integrations.store.corrections import ScopeCorrection
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.support.progress import Progress

logger = logging.getLogger(__name__)

OUTGROWN = 2  # a correction is measured again when its scope has this many times the chunks


def measure_corrections(
    work: IngestWork, store: Store, context_window: int, progress: Progress
) -> None:
    """Measure the correction of each scope that has none or has grown much since."""
    store.corrections.remove_stale()
    for scope in store.catalog.chunks.count_by_scope():
        fused = store.catalog.kv.fused_ids(scope)
        known = store.corrections.read(scope)
        wanted = mixtures.count_of(len(fused))
        if not wanted or (known and len(fused) <= known.chunks * OUTGROWN):
            continue
        try:
            correction, chunk_ids = work.correction(
                _mixtures(store, fused, wanted, context_window),
                lambda done, total: progress("correct", done, total),
            )
            store.corrections.write(scope, ScopeCorrection(correction, chunk_ids, len(fused)))
        except KVRecordError as error:
            logger.warning("A scope's correction is left for the next ingest: %s", error)


def _mixtures(
    store: Store, fused: Sequence[str], count: int, context_window: int
) -> list[list[ChunkRecord]]:
    asked = mixtures.seeds(fused, count)
    near = store.similar(asked, mixtures.CHUNKS - 1)
    prompts = []
    for seed in asked:
        records = store.catalog.chunks.records([seed, *near[seed]]).values()
        usable = [record for record in records if record.fused_key]
        prompts.append(mixtures.mixed(usable, context_window))
    return prompts
