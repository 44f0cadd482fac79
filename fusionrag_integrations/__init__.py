"""Answer questions from precomputed, fused KV caches of your chunks.

Importing this package loads nothing heavy: names are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionrag_integrations.answer import Answer, AnswerStream
    from fusionrag_integrations.corpus import Corpus
    from fusionrag_integrations.engine import FusionEngine
    from fusionrag_integrations.errors import FusionRAGError
    from fusionrag_integrations.ingest import IngestReport
    from fusionrag_integrations.types import (
        AnswerSettings,
        Chunk,
        Document,
        KVHandle,
        Passage,
    )

_MODULE_OF = {
    "Answer": "answer",
    "AnswerSettings": "types",
    "AnswerStream": "answer",
    "Chunk": "types",
    "Corpus": "corpus",
    "Document": "types",
    "FusionEngine": "engine",
    "FusionRAGError": "errors",
    "IngestReport": "ingest",
    "KVHandle": "types",
    "Passage": "types",
}

__all__ = [
    "Answer",
    "AnswerSettings",
    "AnswerStream",
    "Chunk",
    "Corpus",
    "Document",
    "FusionEngine",
    "FusionRAGError",
    "IngestReport",
    "KVHandle",
    "Passage",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
