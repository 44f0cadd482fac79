"""LangChain's documents as this package's: pieces of one source become one document."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from langchain_core.documents import Document as LangChainDocument

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.types import Document, Passage

BATCH = 1_000  # rows that are read from a collection at once


def to_documents(documents: Iterable[LangChainDocument], scope: str = "") -> list[Document]:
    """What to ingest: each LangChain document is one chunk, as it is.

    Those with the same `source` in their metadata are one document, named by it, in the order
    given; so that a chunk is fused with the ones before it, and ingesting a source again replaces
    it. Without a source a document is named by its own id, or else by its text.
    """
    passages: dict[str, list[Passage]] = {}
    titles: dict[str, str] = {}
    for document in documents:
        name = document_id(document)
        metadata = document.metadata
        passages.setdefault(name, []).append(Passage(document.page_content, metadata))
        title = metadata.get("title")
        titles.setdefault(name, title if isinstance(title, str) else "")
    return [
        Document(id=name, title=titles[name], scope=scope, passages=tuple(parts))
        for name, parts in passages.items()
    ]


def document_id(document: LangChainDocument) -> str:
    """The id that `to_documents` gives: of the source, of the document, or of its text."""
    source = document.metadata.get("source")
    if isinstance(source, str) and source:
        return source
    return document.id or sha256(document.page_content.encode(errors="surrogatepass")).hexdigest()


def collection_documents(vectorstore: Any) -> list[LangChainDocument]:
    """Everything in a LangChain `Chroma` vector store.

    Raises `InvalidInputError` for a vector store that can't list what it holds.
    """
    if not callable(getattr(vectorstore, "get", None)):
        raise InvalidInputError(
            f"A {type(vectorstore).__name__} can't list its documents; give a "
            "langchain_chroma.Chroma, or ingest your documents with from_documents and wrap "
            "your retriever: FusionKVRetriever(engine=engine, retriever=retriever)."
        )
    found: list[LangChainDocument] = []
    while True:
        rows = vectorstore.get(limit=BATCH, offset=len(found), include=["documents", "metadatas"])
        found += [
            LangChainDocument(id=row_id, page_content=text or "", metadata=dict(metadata or {}))
            for row_id, text, metadata in zip(
                rows["ids"], rows["documents"], rows["metadatas"], strict=True
            )
        ]
        if len(rows["ids"]) < BATCH:
            return found
