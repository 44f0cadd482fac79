"""Answer questions from precomputed, fused KV caches of your chunks.

Importing this package loads nothing heavy: names are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from warnings import warn

from fusionrag_integrations.support.lazy import resolve

if TYPE_CHECKING:
    from fusionrag_integrations.documents.handles import KVHandle
    from fusionrag_integrations.documents.types import Chunk, Document, Passage
    from fusionrag_integrations.engine import FusionEngine
    from fusionrag_integrations.errors import FusionRAGError
    from fusionrag_integrations.ingest.pipeline import IngestReport
    from fusionrag_integrations.serving.answer import Answer, AnswerStream
    from fusionrag_integrations.serving.settings import AnswerSettings
    from fusionrag_integrations.store.store import Store

    Corpus = Store

_MODULE_OF = {
    "Answer": "serving.answer",
    "AnswerSettings": "serving.settings",
    "AnswerStream": "serving.answer",
    "Chunk": "documents.types",
    "Document": "documents.types",
    "FusionEngine": "engine",
    "FusionRAGError": "errors",
    "IngestReport": "ingest.pipeline",
    "KVHandle": "documents.handles",
    "Passage": "documents.types",
    "Store": "store.store",
}

__all__ = [
    "Answer",
    "AnswerSettings",
    "AnswerStream",
    "Chunk",
    "Document",
    "FusionEngine",
    "FusionRAGError",
    "IngestReport",
    "KVHandle",
    "Passage",
    "Store",
]


def __getattr__(name: str) -> Any:
    if name == "Corpus":
        warn("Corpus is called Store now.", DeprecationWarning, stacklevel=2)
        name = "Store"
    return resolve(__name__, _MODULE_OF, name)


def __dir__() -> list[str]:
    return sorted(__all__)
