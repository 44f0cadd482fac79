"""FusionKVRetriever: LangChain documents that carry handles to stored KV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from fusionrag_integrations.corpus import Corpus, document_order
from fusionrag_integrations.engine import FusionEngine, corpus_of
from fusionrag_integrations.types import SearchHit


class FusionKVRetriever(BaseRetriever):
    """Finds the chunks nearest to a question in a store.

    Each document has the chunk's id, its text as content, and in its metadata the user's own
    entries, `document_id`, `title`, `index`, `score` (cosine similarity) and the handle. Documents
    come by their best hit, the chunks of each together in their order, because a chunk may refer
    back to the one before it.

    Give an `engine`, or open a store without loading weights:
    `FusionKVRetriever.from_store("my-store", k=5)`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    engine: FusionEngine | None = Field(None, exclude=True, repr=False)
    corpus: Corpus | None = Field(None, exclude=True, repr=False)
    k: int = Field(5, ge=1, description="How many chunks to retrieve.")
    scope: str | None = Field(None, description="Search this scope only.")

    @classmethod
    def from_store(
        cls, path: str | Path, *, embedding: object | None = None, **fields: Any
    ) -> FusionKVRetriever:
        """A retriever over the store at `path`, which needs no model.

        embedding: the one that the store was made with. Raises as `Corpus.open` does.
        """
        return cls(corpus=Corpus.open(path, embedding), **fields)

    _source: Corpus = PrivateAttr()

    @model_validator(mode="after")
    def _choose_source(self) -> FusionKVRetriever:
        self._source = corpus_of(self.engine, self.corpus)
        return self

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
    ) -> list[Document]:
        hits = self._source.search(query, self.k if k is None else k, scope=self.scope)
        return [_to_document(hit) for hit in document_order(hits)]


def _to_document(hit: SearchHit) -> Document:
    chunk = hit.chunk
    return Document(
        id=chunk.id,
        page_content=chunk.text,
        metadata={
            **chunk.metadata,
            "document_id": chunk.document_id,
            "title": chunk.title,
            "index": chunk.index,
            "score": hit.score,
            **hit.handle.to_metadata(),
        },
    )
