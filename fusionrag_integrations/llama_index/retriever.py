"""FusionKVRetriever: LlamaIndex nodes that carry handles to stored KV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores import MetadataFilters

from fusionrag_integrations.adapters.base import FusionEngine, Store
from fusionrag_integrations.adapters.chosen import chosen_source
from fusionrag_integrations.adapters.retrieval import StoreRetriever, renamed_corpus
from fusionrag_integrations.documents.handles import KVHandle, document_order
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.llama_index.nodes import (
    as_passage,
    mark,
    to_documents,
    to_node,
    to_where,
)
from fusionrag_integrations.support.inputs import checked, checked_value
from fusionrag_integrations.support.progress import Progress


class FusionKVRetriever(BaseRetriever, StoreRetriever):
    """Finds the chunks nearest to a question in a store, or those that another retriever finds.

    Each node has the chunk's id and text; its metadata holds the user's own entries, and
    `document_id`, `title`, `index` and the handle, which prompts and embeddings don't include. The
    chunks of each document are together, in their order, because a chunk may refer back to the one
    before it; documents are in the order of their best hits.

    With a `retriever` of your own, its nodes and their order don't change; those whose text was
    ingested get their handle. `similarity_top_k` doesn't apply then, and `filters` are refused.

    A node's score is cosine similarity, higher is nearer. Raises `InvalidInputError` for invalid
    arguments and for an empty question.

        FusionKVRetriever.from_nodes(nodes, engine=engine, similarity_top_k=5)
        FusionKVRetriever(engine=engine, retriever=index.as_retriever())
        with FusionKVRetriever.from_store("my-store") as retriever:     # loads no weights
            ...
    """

    @checked()
    def __init__(
        self,
        *,
        engine: FusionEngine | None = None,
        store: Store | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        retriever: BaseRetriever | None = None,
        similarity_top_k: int = 5,
        scopes: Sequence[str] | None = None,
        filters: MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
        corpus: Store | None = None,
    ) -> None:
        """base_url: instead of engine and store, of a server (`fusionrag serve`). api_key: its key
        for you, by default the environment variable FUSIONRAG_API_KEY. corpus: deprecated, called
        `store` now.
        """
        searched = renamed_corpus(store, corpus, stacklevel=4)
        self._source = chosen_source(engine, searched, base_url, api_key)
        _check(retriever, similarity_top_k, filters)
        self.retriever = retriever
        self.similarity_top_k = similarity_top_k
        self.scopes = scopes
        self.filters = filters
        super().__init__(callback_manager=callback_manager)

    @classmethod
    def class_name(cls) -> str:
        return "FusionKVRetriever"

    @classmethod
    def from_nodes(
        cls,
        nodes: Iterable[BaseNode],
        *,
        engine: FusionEngine,
        scope: str = "",
        progress: Progress | None = None,
        **arguments: Any,
    ) -> FusionKVRetriever:
        """Ingest nodes, and retrieve from their scope.

        Each node becomes one chunk, as it is; those of one source document belong together, and
        replace what was ingested of it before. Unchanged ones cost nothing. Raises as
        `FusionEngine.ingest` does.
        """
        retriever = cls(engine=engine, **{"scopes": [scope], **arguments})
        engine.ingest(to_documents(nodes, scope), progress=progress)
        return retriever

    def retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """The nodes for a question. Raises `InvalidInputError` for an invalid one."""
        checked_value("The question", str_or_query_bundle, str | QueryBundle)
        return super().retrieve(str_or_query_bundle)

    async def aretrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """`retrieve` in a thread."""
        checked_value("The question", str_or_query_bundle, str | QueryBundle)
        return await super().aretrieve(str_or_query_bundle)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if self.retriever is not None:
            return self._marked(self.retriever.retrieve(query_bundle))
        hits = self._source.search(
            query_bundle.query_str,
            self.similarity_top_k,
            scopes=self.scopes,
            where=None if self.filters is None else to_where(self.filters),
        )
        return self._expected([to_node(hit) for hit in document_order(hits)])

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if self.retriever is None:
            return await self._source.run(self._retrieve, query_bundle)
        found = await self.retriever.aretrieve(query_bundle)
        return await self._source.run(self._marked, found)

    def _marked(self, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        handles = self._source.handles_of([as_passage(found.node) for found in nodes], self.scopes)
        return self._expected(
            [
                NodeWithScore(node=mark(found.node, handle), score=found.score)
                for found, handle in zip(nodes, handles, strict=True)
            ]
        )

    def _expected(self, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        """The nodes; their KV is loaded while the query engine makes its prompt."""
        handles = [KVHandle.from_metadata(found.node.metadata) for found in nodes]
        unknown = [
            found.node.get_content(MetadataMode.NONE)
            for found, handle in zip(nodes, handles, strict=True)
            if handle is None
        ]
        self._source.expect_prompt(filter(None, handles), unknown, self.scopes)
        return nodes


def _check(
    retriever: BaseRetriever | None, similarity_top_k: int, filters: MetadataFilters | None
) -> None:
    """Refuse now what would fail at the first question, or find nothing."""
    if similarity_top_k < 1:
        raise InvalidInputError(f"similarity_top_k is {similarity_top_k!r}; it must be at least 1.")
    if filters is None:
        return
    if retriever is not None:
        raise InvalidInputError("filters don't reach another retriever; give them to that one.")
    to_where(filters)
