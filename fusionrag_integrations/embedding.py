"""The same names as in `fusionrag_integrations.documents.embedding`, where they are defined."""

from fusionrag_integrations.documents.embedding import Embedder, LexicalEmbedder

__all__ = ["Embedder", "LexicalEmbedder"]
