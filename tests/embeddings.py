"""The built-in embedding, which needs no model, as each framework has embeddings."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings
from llama_index.core.base.embeddings.base import BaseEmbedding

from fusionrag_integrations.documents.embedding import LexicalEmbedder


class LangChainLexical(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return LexicalEmbedder().embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        return LexicalEmbedder().embed_query(text)


class LlamaIndexLexical(BaseEmbedding):
    def _get_query_embedding(self, query: str) -> list[float]:
        return LexicalEmbedder().embed_query(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return LexicalEmbedder().embed_query(text)
