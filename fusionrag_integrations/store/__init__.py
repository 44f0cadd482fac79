"""All that is kept in one directory: documents, vectors and KV records.

store.py         Store: opens and creates it, owns its parts, searches and locks it
layout.py        the names of all files and directories
parts.py         its parts, opened together
info.py          what a store was made with, and how much it holds
stored_info.py   the same of a store that isn't opened
stored_files.py  its catalog and KV files, to look at
for_model.py     opens or creates the store of one model
opening.py       whether a directory is a store, and its catalog can be trusted
chosen_index.py  the index in the directory, or the one that a caller gave
locking.py       the lock to change it
generations.py   a directory whose store was made anew for another model
changes.py       replaces and deletes documents so that a crash loses nothing
deletion.py      deletes documents with all KV made from them; collects garbage
search.py        question -> chunks, following changes by other processes
corrections.py   corrections of fused KV, one file per scope
calibration.py   what was measured of a model, as a file
verify.py        finds all damage, changing nothing
repair.py        fixes what verify.py finds
rebuild.py       rebuilds the catalog from the manifests
catalog/         what was ingested, and which KV belongs to which chunk (SQLite)
manifests/       the same as one file per document, from which the catalog is rebuilt
vector_index/    the nearest chunks to a question
kv/              KV records: files, and tiers in memory
objects/         named bytes at a URL
published/       stores at URLs: versions, working copies, leases
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusionrag_integrations.support.lazy import resolve

if TYPE_CHECKING:
    from fusionrag_integrations.store.kv.disk_budget import Budgets
    from fusionrag_integrations.store.kv.metrics import StoreMetrics, TierMetrics

_MODULE_OF = {
    "Budgets": "store.kv.disk_budget",
    "StoreMetrics": "store.kv.metrics",
    "TierMetrics": "store.kv.metrics",
}

__all__ = ["Budgets", "StoreMetrics", "TierMetrics"]


def __getattr__(name: str) -> Any:
    return resolve(__name__, _MODULE_OF, name)
