"""LlamaIndex components: a retriever and a language model over one engine."""

from __future__ import annotations

from fusionrag_integrations.llama_index.llm import FusionRAGLLM
from fusionrag_integrations.llama_index.retriever import FusionKVRetriever

__all__ = ["FusionKVRetriever", "FusionRAGLLM"]
