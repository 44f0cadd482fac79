"""The endpoints that search, and that add, list and delete documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Self

from pydantic import Field, model_validator

from fusionrag_integrations.documents.handles import SearchHit, document_order
from fusionrag_integrations.documents.types import Document
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.server.bodies import Body
from fusionrag_integrations.server.errors import ApiError
from fusionrag_integrations.server.keys import Caller
from fusionrag_integrations.server.service import Service

MOST = 1_000  # of what one request may list or find
LONGEST_ID = 1_024  # characters of a document's: deleting it has it in the path
_OF_DOCUMENTS = ("documents_new", "documents_changed", "documents_unchanged", "documents_deleted")


class TextBody(Body):
    """A text that another retriever found. source: its document's id."""

    text: str
    source: str | None = None


class RetrieveBody(Body):
    """A question to search by, or texts that are looked up.

    embeddings: whether the vectors of the question and of the chunks are wanted.
    """

    query: str | None = None
    texts: list[TextBody] | None = Field(default=None, max_length=MOST)
    k: int = Field(default=5, ge=1, le=MOST)
    scopes: list[str] | None = Field(default=None, min_length=1)
    where: dict[str, Any] | None = None
    embeddings: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.query is None) == (self.texts is None):
            raise InvalidInputError("Give either query or texts.")
        of_queries = self.model_fields_set & {"embeddings", "k", "where"}
        if self.texts is not None and of_queries:
            raise InvalidInputError(f"{', '.join(sorted(of_queries))} can't be given with texts.")
        return self


class DocumentBody(Body):
    """A document to add. scope: by default the key's own."""

    id: str = Field(max_length=LONGEST_ID)
    text: str
    title: str = ""
    scope: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class DocumentsBody(Body):
    documents: list[DocumentBody]


class OfScope(Body):
    """Parameters of a request about a document. scope: by default the key's own."""

    scope: str | None = None


class PageOfDocuments(Body, strict=False):  # a number in an address is a string
    """Parameters of a list. scope: by default all of the key's. after: the last id before it."""

    scope: str | None = None
    limit: int = Field(default=100, ge=1, le=MOST)
    after: str | None = None


def retrieve(service: Service, caller: Caller, body: RetrieveBody) -> dict[str, Any]:
    """Chunks for a question, in the order in which a prompt should have them; or one entry a text.

    Their KV is loaded meanwhile; texts that are no chunk's are registered.
    """
    engine = service.engine
    scopes = caller.allowed(body.scopes)
    if body.query is not None:
        return _search(service, body.query, scopes, body)
    texts = body.texts or []
    handles = [engine.store.handle_of(one.text, one.source or "", scopes) for one in texts]
    service.prefetch([handle for handle in handles if handle])
    unknown = [one.text for one, handle in zip(texts, handles, strict=True) if handle is None]
    engine.register_texts(unknown, scope=scopes[0] if scopes else "")
    data = [{"handle": None if handle is None else asdict(handle)} for handle in handles]
    return {"object": "list", "data": data}


async def add(service: Service, caller: Caller, body: DocumentsBody) -> dict[str, Any]:
    """Ingest documents, one such request after the other. Returns what the ingest did.

    An ingest computes what is pending, whoever's it is: those who may not use every scope are told
    of documents alone. Raises `ApiError` (400) for a document that is given twice.
    """
    documents = [
        Document(one.id, one.text, one.title, caller.written(one.scope), one.metadata)
        for one in body.documents
    ]
    for key, times in Counter(document.key for document in documents).items():
        if times > 1:
            message = f"The document {key.id!r} of scope {key.scope!r} is given {times} times."
            raise ApiError(HTTPStatus.BAD_REQUEST, f"{message} Give it once.", "documents")
    async with service.changes.place(caller):
        report = asdict(await service.engine.threads.run(service.engine.ingest, documents))
    of_caller = report if caller.scopes is None else _OF_DOCUMENTS
    return {name: report[name] for name in of_caller}


async def delete(
    service: Service, caller: Caller, document: str, scope: str | None
) -> dict[str, Any]:
    """Delete a document. Raises `ApiError` (404) where there is none."""
    engine, where = service.engine, caller.written(scope)
    async with service.changes.place(caller):
        deleted = await engine.threads.run(engine.delete, [document], scope=where)
    if not deleted:
        message = f"There is no document {document!r} in scope {where!r}."
        raise ApiError(HTTPStatus.NOT_FOUND, message, "id", "document_not_found")
    return {"id": document, "object": "document", "deleted": True}


def listed(engine: FusionEngine, caller: Caller, page: PageOfDocuments) -> dict[str, Any]:
    """A page of the documents that the caller may use, by id."""
    if page.scope is not None:
        caller.check_scope(page.scope, "scope")
    scopes = caller.scopes if page.scope is None else (page.scope,)
    found, has_more = engine.store.catalog.documents.page(scopes, page.after, page.limit)
    return {"object": "list", "data": [asdict(one) for one in found], "has_more": has_more}


def _search(
    service: Service, query: str, scopes: Sequence[str] | None, body: RetrieveBody
) -> dict[str, Any]:
    store = service.engine.store
    vector = store.embed_question(query)
    hits = document_order(store.nearest(vector, body.k, scopes=scopes, where=body.where))
    service.prefetch([hit.handle for hit in hits])
    rows = [_hit(hit) for hit in hits]
    if not body.embeddings:
        return {"object": "list", "data": rows}
    vectors = store.embeddings([hit.chunk.id for hit in hits])
    rows = [row | {"embedding": list(vectors[row["id"]])} for row in rows if row["id"] in vectors]
    return {"object": "list", "data": rows, "query_embedding": list(vector)}


def _hit(hit: SearchHit) -> dict[str, Any]:
    chunk = hit.chunk
    return {
        "id": chunk.id,
        "document_id": chunk.document_id,
        "title": chunk.title,
        "index": chunk.index,
        "text": chunk.text,
        "scope": chunk.scope,
        "score": float(hit.score),
        "metadata": dict(chunk.metadata),
        "handle": asdict(hit.handle),
    }
