"""LangChain components: a retriever, a string model and a chat model over one engine.

retriever.py   `FusionKVRetriever`
llm.py         `FusionRAGLLM`, the string model
chat.py        `ChatFusionRAG`, the chat model
messages.py    LangChain's messages as this package's, and answers as LangChain's
documents.py   LangChain's documents as this package's
"""

from __future__ import annotations

from fusionrag_integrations.langchain.chat import ChatFusionRAG
from fusionrag_integrations.langchain.documents import to_documents
from fusionrag_integrations.langchain.llm import FusionRAGLLM
from fusionrag_integrations.langchain.retriever import FusionKVRetriever

__all__ = ["ChatFusionRAG", "FusionKVRetriever", "FusionRAGLLM", "to_documents"]
