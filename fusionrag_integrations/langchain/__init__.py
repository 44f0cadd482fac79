"""LangChain components: a retriever, a string model and a chat model over one engine."""

from __future__ import annotations

from fusionrag_integrations.langchain.chat import ChatFusionRAG
from fusionrag_integrations.langchain.documents import to_documents
from fusionrag_integrations.langchain.llm import FusionRAGLLM
from fusionrag_integrations.langchain.retriever import FusionKVRetriever

__all__ = ["ChatFusionRAG", "FusionKVRetriever", "FusionRAGLLM", "to_documents"]
