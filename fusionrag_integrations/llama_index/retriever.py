"""FusionKVRetriever: LlamaIndex nodes that carry handles to stored KV."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from fusionrag_integrations.corpus import Corpus, document_order
from fusionrag_integrations.engine import FusionEngine, corpus_of
from fusionrag_integrations.types import HANDLE_METADATA_KEYS, SearchHit

_OURS = ["document_id", "title", "index", *HANDLE_METADATA_KEYS]


class FusionKVRetriever(BaseRetriever):
    """Finds the chunks nearest to a question in a store.

    Each node has the chunk's id and text; its metadata holds the user's own entries, and
    `document_id`, `title`, `index` and the handle, which are kept out of prompts and embeddings.
    Nodes come by their document's best hit, the chunks of each document together in their order,
    because a chunk may refer back to the one before it.

    Give an `engine`, or open a store without loading weights:
    `FusionKVRetriever.from_store("my-store", similarity_top_k=5)`.
    """

    def __init__(
        self,
        *,
        engine: FusionEngine | None = None,
        corpus: Corpus | None = None,
        similarity_top_k: int = 5,
        scope: str | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        self._corpus = corpus_of(engine, corpus)
        self.similarity_top_k = similarity_top_k
        self.scope = scope
        super().__init__(callback_manager=callback_manager)

    @classmethod
    def from_store(
        cls, path: str | Path, *, embedding: object | None = None, **arguments: Any
    ) -> FusionKVRetriever:
        """A retriever over the store at `path`, which needs no model.

        embedding: the one that the store was made with. Raises as `Corpus.open` does.
        """
        return cls(corpus=Corpus.open(path, embedding), **arguments)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self._corpus.search(query_bundle.query_str, self.similarity_top_k, scope=self.scope)
        return [_to_node(hit) for hit in document_order(hits)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def _to_node(hit: SearchHit) -> NodeWithScore:
    chunk = hit.chunk
    node = TextNode(
        id_=chunk.id,
        text=chunk.text,
        metadata={
            **chunk.metadata,
            "document_id": chunk.document_id,
            "title": chunk.title,
            "index": chunk.index,
            **hit.handle.to_metadata(),
        },
        excluded_llm_metadata_keys=list(_OURS),
        excluded_embed_metadata_keys=list(_OURS),
    )
    return NodeWithScore(node=node, score=hit.score)
