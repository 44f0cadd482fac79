"""LlamaIndex components: a retriever, a language model and a way in, over one engine."""

from __future__ import annotations

from fusionrag_integrations.llama_index.llm import FusionRAGLLM
from fusionrag_integrations.llama_index.nodes import to_documents
from fusionrag_integrations.llama_index.retriever import FusionKVRetriever
from fusionrag_integrations.llama_index.transform import FusionKVTransform

__all__ = ["FusionKVRetriever", "FusionKVTransform", "FusionRAGLLM", "to_documents"]
