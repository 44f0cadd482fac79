"""The public types under one name; each is defined in the room that it belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusionrag_integrations.support.lazy import resolve

if TYPE_CHECKING:
    from fusionrag_integrations.documents.chunk_record import (
        ChunkRecord,
        ContextTrace,
        EncodedChunk,
    )
    from fusionrag_integrations.documents.handles import KVHandle, KVKind, SearchHit
    from fusionrag_integrations.documents.types import (
        Chunk,
        Document,
        DocumentKey,
        MetadataValue,
        Passage,
    )
    from fusionrag_integrations.prompt.assembled import AssembledPrompt, Span, TextMatch
    from fusionrag_integrations.prompt.messages import Message, Prompt
    from fusionrag_integrations.selectors.probe import LayerView, Probe
    from fusionrag_integrations.selectors.selection import Selector, SelectorName, TokenSelection
    from fusionrag_integrations.serving.loading import LoadedPrompt
    from fusionrag_integrations.serving.settings import AnswerSettings, KVSource
    from fusionrag_integrations.serving.usage import TTFTBreakdown, Usage
    from fusionrag_integrations.store.calibration import Calibration
    from fusionrag_integrations.store.kv.types import ChunkKV, KeptKV, KVFormat, LayeredKV

_MODULE_OF = {
    **dict.fromkeys(("ChunkRecord", "ContextTrace", "EncodedChunk"), "documents.chunk_record"),
    **dict.fromkeys(("KVHandle", "KVKind", "SearchHit"), "documents.handles"),
    **dict.fromkeys(
        ("Chunk", "Document", "DocumentKey", "MetadataValue", "Passage"), "documents.types"
    ),
    **dict.fromkeys(("AssembledPrompt", "Span", "TextMatch"), "prompt.assembled"),
    **dict.fromkeys(("Message", "Prompt"), "prompt.messages"),
    **dict.fromkeys(("LayerView", "Probe"), "selectors.probe"),
    **dict.fromkeys(("Selector", "SelectorName", "TokenSelection"), "selectors.selection"),
    "LoadedPrompt": "serving.loading",
    **dict.fromkeys(("AnswerSettings", "KVSource"), "serving.settings"),
    **dict.fromkeys(("TTFTBreakdown", "Usage"), "serving.usage"),
    "Calibration": "store.calibration",
    **dict.fromkeys(("ChunkKV", "KeptKV", "KVFormat", "LayeredKV"), "store.kv.types"),
}

__all__ = [
    "AnswerSettings",
    "AssembledPrompt",
    "Calibration",
    "Chunk",
    "ChunkKV",
    "ChunkRecord",
    "ContextTrace",
    "Document",
    "DocumentKey",
    "EncodedChunk",
    "KVFormat",
    "KVHandle",
    "KVKind",
    "KVSource",
    "KeptKV",
    "LayerView",
    "LayeredKV",
    "LoadedPrompt",
    "Message",
    "MetadataValue",
    "Passage",
    "Probe",
    "Prompt",
    "SearchHit",
    "Selector",
    "SelectorName",
    "Span",
    "TTFTBreakdown",
    "TextMatch",
    "TokenSelection",
    "Usage",
]


def __getattr__(name: str) -> Any:
    return resolve(__name__, _MODULE_OF, name)
