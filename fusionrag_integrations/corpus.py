"""Names from before `Corpus` was called `Store`."""

from fusionrag_integrations.documents.handles import document_order
from fusionrag_integrations.store.layout import KV_DIRECTORY
from fusionrag_integrations.store.store import Store as Corpus

__all__ = ["KV_DIRECTORY", "Corpus", "document_order"]
