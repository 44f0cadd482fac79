"""LlamaIndex components: a retriever, a language model and a transformation, over one engine.

retriever.py  `FusionKVRetriever`
llm.py        `FusionRAGLLM`; responses.py: its responses
transform.py  `FusionKVTransform`, which ingests in a pipeline
nodes.py      LlamaIndex's nodes as this package's documents, handles and filters
packing.py    how much context fits into a prompt
component.py  what the components share
"""

from __future__ import annotations

from fusionrag_integrations.llama_index.llm import FusionRAGLLM
from fusionrag_integrations.llama_index.nodes import to_documents
from fusionrag_integrations.llama_index.retriever import FusionKVRetriever
from fusionrag_integrations.llama_index.transform import FusionKVTransform

__all__ = ["FusionKVRetriever", "FusionKVTransform", "FusionRAGLLM", "to_documents"]
