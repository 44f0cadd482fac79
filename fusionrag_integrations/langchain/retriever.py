"""FusionKVRetriever: LangChain documents that carry handles to stored KV."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from fusionrag_integrations.adapters.base import ChunkSource, FusionEngine, Store
from fusionrag_integrations.adapters.chosen import chosen_source
from fusionrag_integrations.adapters.component import Component
from fusionrag_integrations.adapters.retrieval import StoreRetriever, renamed_corpus
from fusionrag_integrations.documents.handles import KVHandle, SearchHit, document_order
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.langchain.documents import collection_documents, source_of, to_documents
from fusionrag_integrations.support.inputs import checked_value
from fusionrag_integrations.support.names import refuse_unknown
from fusionrag_integrations.support.progress import Progress
from fusionrag_integrations.support.renamed import Renamed

_SEARCH_FIELDS = {"k", "filter", "score_threshold", "search_type", "fetch_k", "lambda_mult"}


class FusionKVRetriever(Component, BaseRetriever, StoreRetriever):
    """Finds the chunks nearest to a question in a store, or those that another retriever finds.

    Each document has the chunk's id, its text as content, and in its metadata the user's own
    entries, `document_id`, `title`, `index` and the handle. It doesn't depend on the question. The
    chunks of each document are together, in their order, because a chunk may refer back to the one
    before it; documents are in the order of their best hits.

    With a `retriever` of your own, its documents and their order don't change; those whose text was
    ingested get their handle. Its search is its own: `k` and the like can't be given.

    Raises `InvalidInputError` for an empty question and a filter that the index can't read. A call
    may give another `k`: `retriever.invoke(question, k=3)`.

        FusionKVRetriever.from_documents(splits, engine=engine, k=5)
        FusionKVRetriever.from_chroma(vectorstore, engine=engine)
        FusionKVRetriever(engine=engine, retriever=any_retriever)
        with FusionKVRetriever.from_store("my-store", k=5) as retriever:  # loads no weights
            ...
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    corpus: ClassVar = Renamed("store")

    engine: FusionEngine | None = Field(default=None, exclude=True, repr=False)
    store: Store | None = Field(default=None, exclude=True, repr=False)
    base_url: str | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description="Instead of those: where `fusionrag serve` runs, 'http://localhost:8000'.",
    )
    api_key: str | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description="The server's key for you; by default the variable FUSIONRAG_API_KEY.",
    )
    retriever: BaseRetriever | None = Field(
        default=None, description="Finds the documents instead."
    )
    k: int = Field(default=5, ge=1, description="How many chunks to retrieve.")
    scopes: list[str] | None = Field(
        default=None, description="Search these scopes only; with your own retriever, for handles."
    )
    filter: dict[str, Any] | None = Field(
        default=None, description="On metadata, in Chroma's terms: {'page': {'$gt': 3}}."
    )
    score_threshold: float | None = Field(
        default=None, ge=-1, le=1, description="The least similarity, up to 1."
    )
    search_type: Literal["similarity", "mmr"] = Field(
        default="similarity", description="mmr weighs similarity against variety."
    )
    fetch_k: int = Field(default=20, ge=1, description="Candidates that mmr chooses from.")
    lambda_mult: float = Field(
        default=0.5, ge=0, le=1, description="For mmr: 1 is similarity alone."
    )

    if not TYPE_CHECKING:  # type checkers see the fields as arguments

        def __init__(self, *, corpus: Store | None = None, **given: Any) -> None:
            if corpus is not None:
                given["store"] = renamed_corpus(given.get("store"), corpus, stacklevel=3)
            super().__init__(**given)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        *,
        engine: FusionEngine,
        scope: str = "",
        progress: Progress | None = None,
        **fields: Any,
    ) -> FusionKVRetriever:
        """Ingest documents that are split already, and retrieve from their scope.

        Each document becomes one chunk, as it is; those of one `source` (in the metadata) belong
        together, and replace what was ingested of that source before. Unchanged ones cost
        nothing. Raises as `FusionEngine.ingest` does.
        """
        source = cls(engine=engine, **{"scopes": [scope], **fields})
        engine.ingest(to_documents(documents, scope), progress=progress)
        return source

    @classmethod
    def from_chroma(
        cls,
        vectorstore: Any,
        *,
        engine: FusionEngine,
        scope: str = "",
        progress: Progress | None = None,
        **as_retriever: Any,
    ) -> FusionKVRetriever:
        """Ingest all documents of a LangChain `Chroma`, and retrieve from it.

        What you later delete from the collection, delete from the engine too:
        `engine.delete([source], scope=scope)`. as_retriever: arguments of
        `vectorstore.as_retriever`, such as `search_type` and `search_kwargs`. Raises
        `InvalidInputError` for a vector store that can't list its documents, and as
        `FusionEngine.ingest` does.
        """
        engine.ingest(to_documents(collection_documents(vectorstore), scope), progress=progress)
        retriever = vectorstore.as_retriever(**as_retriever)
        return cls(engine=engine, retriever=retriever, scopes=[scope])

    def similarity_search_with_score(
        self, query: str, k: int | None = None
    ) -> list[tuple[Document, float]]:
        """What `invoke` finds, each with its score: cosine similarity, higher is nearer.

        Raises as `invoke` does, and `InvalidInputError` with a retriever of your own.
        """
        if self.retriever is not None:
            raise InvalidInputError(
                "A retriever of your own has no scores here; ask what it searches for them, such "
                "as vectorstore.similarity_search_with_score(query)."
            )
        hits = self._search(query, _checked_k(k))
        return [(_to_document(hit), hit.score) for hit in hits]

    _source: ChunkSource = PrivateAttr()

    @model_validator(mode="after")
    def _choose_source(self) -> FusionKVRetriever:
        self._source = chosen_source(self.engine, self.store, self.base_url, self.api_key)
        if self.retriever is not None and (given := self.model_fields_set & _SEARCH_FIELDS):
            raise InvalidInputError(
                f"{', '.join(sorted(given))} can't be given with a retriever of your own; give "
                "that one what it should search by."
            )
        return self

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        **unknown: Any,
    ) -> list[Document]:
        refuse_unknown("A call of FusionKVRetriever", unknown, ["k"])
        k = _checked_k(k)
        if self.retriever is not None:
            config = {"callbacks": run_manager.get_child()}
            found = self.retriever.invoke(query, config=config)  # type: ignore[arg-type]
            return self._with_handles(found if k is None else found[:k])
        hits = self._search(query, k)
        self._source.expect_prompt([hit.handle for hit in hits], [], self.scopes)
        return [_to_document(hit) for hit in hits]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        **unknown: Any,
    ) -> list[Document]:
        refuse_unknown("A call of FusionKVRetriever", unknown, ["k"])
        k = _checked_k(k)
        if self.retriever is None:
            return await self._source.run(
                self._get_relevant_documents, query, run_manager=run_manager.get_sync(), k=k
            )
        config = {"callbacks": run_manager.get_child()}
        found = await self.retriever.ainvoke(query, config=config)  # type: ignore[arg-type]
        first = found if k is None else found[:k]
        return await self._source.run(self._with_handles, first)

    def _search(self, query: str, k: int | None) -> list[SearchHit]:
        k = self.k if k is None else k
        if self.search_type == "mmr":
            return document_order(self._diverse(query, k))
        hits = self._source.search(query, k, scopes=self.scopes, where=self.filter)
        return document_order(self._near_enough(hits))

    def _diverse(self, query: str, k: int) -> list[SearchHit]:
        found = self._source.search_embedded(
            query, max(k, self.fetch_k), scopes=self.scopes, where=self.filter
        )
        hits = self._near_enough(found.hits)
        if not hits:
            return []
        vectors = [found.chunks[hit.chunk.id] for hit in hits]
        chosen = maximal_marginal_relevance(np.array(found.question), vectors, self.lambda_mult, k)
        return [hits[i] for i in chosen]

    def _near_enough(self, hits: list[SearchHit]) -> list[SearchHit]:
        least = self.score_threshold
        return hits if least is None else [hit for hit in hits if hit.score >= least]

    def _with_handles(self, documents: list[Document]) -> list[Document]:
        """The documents, with a handle where their text is known."""
        handles: list[KVHandle] = []
        unknown: list[str] = []
        marked: list[Document] = []
        passages = [(document.page_content, source_of(document)) for document in documents]
        found = self._source.handles_of(passages, self.scopes)
        for document, handle in zip(documents, found, strict=True):
            if handle is None:
                unknown.append(document.page_content)
            else:
                handles.append(handle)
                metadata = {**document.metadata, **handle.to_metadata()}
                document = document.model_copy(update={"metadata": metadata})
            marked.append(document)
        self._source.expect_prompt(handles, unknown, self.scopes)
        return marked


def _checked_k(given: int | None) -> int | None:
    """How many chunks a call asks for; None for as many as the retriever's `k`."""
    k: int | None = checked_value("k", given, int | None)
    if k is not None and k < 1:
        raise InvalidInputError(f"k is {k}; it must be at least 1.")
    return k


def _to_document(hit: SearchHit) -> Document:
    chunk = hit.chunk
    return Document(
        id=chunk.id,
        page_content=chunk.text,
        metadata={
            "document_id": chunk.document_id,
            "title": chunk.title,
            "index": chunk.index,
            **chunk.metadata,
            **hit.handle.to_metadata(),
        },
    )
