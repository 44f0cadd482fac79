"""LangChain's documents as this package's: pieces of one source become one document."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from langchain_core.vectorstores import VectorStore

from fusionrag_integrations.documents.handles import HANDLE_METADATA_KEYS
from fusionrag_integrations.documents.passages import group_passages
from fusionrag_integrations.documents.types import Document, Passage
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.vector_index.entries import STORE_KEY
from fusionrag_integrations.support.inputs import checked

BATCH = 1_000  # rows that are read from a collection at once


@checked()
def to_documents(documents: Iterable[LangChainDocument], scope: str = "") -> list[Document]:
    """What to ingest: each LangChain document is one chunk, as it is.

    Those with the same `source` in their metadata are one document, named by it, in the order
    given; so that a chunk is fused with the ones before it, and ingesting a source again replaces
    it. Without a source a document is named by its own id, or else by its text. Each scope
    has documents of its own: `engine.delete([source], scope=scope)`.

    Raises `InvalidInputError` for metadata that can't be stored.
    """
    return group_passages(((source_of(d), _passage(d)) for d in documents), scope)


def _passage(document: LangChainDocument) -> Passage:
    metadata = {k: v for k, v in document.metadata.items() if k not in HANDLE_METADATA_KEYS}
    return Passage(document.page_content, metadata)


def source_of(document: LangChainDocument) -> str:
    """The id of the document: its source, else its own id, else a hash of its text."""
    source = document.metadata.get("source")
    if isinstance(source, str | Path) and str(source):
        return str(source)
    return document.id or sha256(document.page_content.encode(errors="surrogatepass")).hexdigest()


def collection_documents(vectorstore: Any) -> list[LangChainDocument]:
    """Everything in a LangChain `Chroma` vector store, but what stores keep there of their own.

    Raises `InvalidInputError` for a vector store that can't list what it holds.
    """
    if not isinstance(vectorstore, VectorStore) or not hasattr(vectorstore, "get"):
        raise InvalidInputError(
            f"A {type(vectorstore).__name__} can't list its documents; give a "
            "langchain_chroma.Chroma, or ingest your documents with from_documents and wrap "
            "your retriever: FusionKVRetriever(engine=engine, retriever=retriever)."
        )
    found: list[LangChainDocument] = []
    read = 0
    while True:
        rows = vectorstore.get(limit=BATCH, offset=read, include=["documents", "metadatas"])
        read += len(rows["ids"])
        found += [
            LangChainDocument(id=row_id, page_content=text or "", metadata=dict(metadata or {}))
            for row_id, text, metadata in zip(
                rows["ids"], rows["documents"], rows["metadatas"], strict=True
            )
            if STORE_KEY not in (metadata or {})
        ]
        if len(rows["ids"]) < BATCH:
            return found
