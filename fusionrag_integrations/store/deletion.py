"""Deletes documents with all KV made from or with them, and KV that no chunk uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.support.inputs import checked_value


class DeletableKV(Protocol):
    """KV records by key: a store's files, or its tiers, which hold some in memory too."""

    def keys(self) -> Iterator[str]: ...

    def delete(self, key: str) -> None: ...


def delete_documents(
    store: Store, kv: DeletableKV, document_ids: Iterable[str], scope: str = ""
) -> int:
    """Delete documents of a scope with all KV made from or with them; returns how many there were.

    Raises `InvalidInputError` for ids that aren't strings, and for a single string.
    """
    ids = list(checked_value("document_ids", document_ids, Iterable[str]))
    with store.writing():
        catalog, corrections = store.catalog, store.corrections
        documents = [DocumentKey(document_id, scope) for document_id in ids]
        keys = catalog.kv.keys_of(documents)

        def collect() -> None:
            corrections.remove_stale()
            collect_garbage(store, kv)

        def free() -> None:
            corrections.remove_stale([scope])
            for key in catalog.kv.dead_keys(keys):
                kv.delete(key)
            catalog.kv.delete_old_traces(keys)

        with store.changes.begin(collect):
            return store.changes.delete(documents, free)


def collect_garbage(store: Store, kv: DeletableKV) -> int:
    """Delete the KV records and traces that no chunk uses; returns how many records.

    The KV of documents that have manifests, but aren't in the catalog, stays: `repair` restores
    these documents.
    """
    unknown = store.manifests.unknown(store.catalog.documents.all())
    of_unknown = {
        key
        for manifest in unknown
        for record in manifest.records
        for key in (record.isolated_key, record.fused_key)
    }
    dead = sorted(set(kv.keys()) - store.catalog.kv.live_keys() - of_unknown)
    for key in dead:
        kv.delete(key)
    store.catalog.kv.delete_old_traces()
    return len(dead)
