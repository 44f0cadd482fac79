"""Fuses an ad-hoc chunk, which was kept from a request."""

from __future__ import annotations

import logging

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.ingest.in_process import InProcess
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.ingest.neighbour_search import NeighbourSearch
from fusionrag_integrations.ingest.neighbours import DEFAULT_NEIGHBOURS
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.store import Store

logger = logging.getLogger(__name__)


def fuse_adhoc(
    work: InProcess, store: Store, kv: TieredKV, facts: ModelFacts, record: ChunkRecord
) -> None:
    """Fuse an ad-hoc chunk behind the ingested ones most similar to it.

    It stays isolated while the store is being changed, or where there is no room.
    """
    try:
        with store.changing_here():
            found = NeighbourSearch(store, facts, DEFAULT_NEIGHBOURS).of_adhoc(record)
            if found is None:
                return
            made, trace = work.prefill.fused_only(found.fused)
            if kv.disk.put_adhoc(made):
                ids = found.links.neighbour_ids
                store.catalog.kv.set_fused(record.chunk.id, made.key, ids, trace)
    except StoreError as error:  # also if the engine is being closed
        logger.info("An ad-hoc chunk stays isolated for now: %s", error)
