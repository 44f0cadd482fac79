"""The documents of another store, with their vectors, encoded for this one's model."""

from __future__ import annotations

from collections.abc import Iterable

from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.ingest.chunk_encoder import ChunkEncoder
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.store.changes import EMBEDDING_BATCH, Update
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.support.progress import Progress


def copy_documents(
    source: Store, target: Store, facts: ModelFacts, progress: Progress
) -> dict[DocumentKey, str]:
    """Make a store's documents those of another; returns how each changed: "new" or "unchanged".

    facts: of the target's model. Raises `InvalidInputError` for a chunk that its context doesn't
    hold.
    """
    encoder = ChunkEncoder(facts, target.catalog.info.record_signature)
    documents = source.catalog.documents.all()
    changes: dict[DocumentKey, str] = {}
    waiting: list[Update] = []
    for count, key in enumerate(documents, start=1):
        progress("catalog", count, len(documents))
        content = source.catalog.documents.content_hash(key) or ""
        changes[key] = "new"
        if target.catalog.documents.content_hash(key) == content:
            changes[key] = "unchanged"
            continue
        chunk_ids = source.catalog.chunks.ids([key])
        found = source.catalog.chunks.records(chunk_ids, tokens=False)
        records = tuple(encoder.record(found[chunk_id].chunk) for chunk_id in chunk_ids)
        waiting.append(Update(key, content, records, source.embeddings(chunk_ids)))
        if sum(len(update.records) for update in waiting) >= EMBEDDING_BATCH:
            target.changes.replace(waiting)
            waiting.clear()
    target.changes.replace(waiting)
    _delete(target, set(target.catalog.documents.all()) - changes.keys())
    return changes


def _delete(target: Store, documents: Iterable[DocumentKey]) -> None:
    """What an earlier attempt has copied, and the other store has deleted since."""
    target.changes.delete(sorted(documents))
