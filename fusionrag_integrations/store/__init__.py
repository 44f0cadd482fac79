"""KV records where requests find them: in files, in host memory, on the device."""

from fusionrag_integrations.store.disk import FileKVStore, format_of
from fusionrag_integrations.store.metrics import StoreMetrics, TierMetrics
from fusionrag_integrations.store.shelf import Budgets
from fusionrag_integrations.store.stored import StoredKV
from fusionrag_integrations.store.tiers import Lease, TieredKV

__all__ = [
    "Budgets",
    "FileKVStore",
    "Lease",
    "StoreMetrics",
    "StoredKV",
    "TierMetrics",
    "TieredKV",
    "format_of",
]
