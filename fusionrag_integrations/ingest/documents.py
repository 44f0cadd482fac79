"""Documents -> chunks in the catalog, with their tokens; a changed document replaces its chunks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sized
from hashlib import sha256
from typing import Literal

from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.documents.keys import metadata_json
from fusionrag_integrations.documents.types import Document, DocumentKey
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.ingest.chunk_encoder import ChunkEncoder
from fusionrag_integrations.ingest.model_facts import ModelFacts
from fusionrag_integrations.ingest.work import ChangedDocument, IngestWork
from fusionrag_integrations.store.changes import EMBEDDING_BATCH, Update
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.support.inputs import holds_several
from fusionrag_integrations.support.progress import Progress

Change = Literal["new", "changed", "unchanged"]


class DocumentUpdates:
    """Brings a store's documents up to date."""

    def __init__(self, work: IngestWork, store: Store, progress: Progress) -> None:
        self._work = work
        self._store = store
        self._progress = progress
        self._latest: dict[DocumentKey, str] = {}  # of what was given, the last content's hash
        self._changes: dict[DocumentKey, Change] = {}

    def update(self, documents: Iterable[Document]) -> dict[DocumentKey, Change]:
        """Returns whether each document changed. A later one replaces one of the same key."""
        if not holds_several(documents):
            raise InvalidInputError(
                f"Give ingest a list of documents; got a single {type(documents).__name__}."
            )
        waiting: dict[DocumentKey, Update] = {}
        try:
            for update in self._work.split(self._changed(documents)):
                if update.content_hash == self._latest[update.document]:
                    waiting[update.document] = update
                if sum(len(update.records) for update in waiting.values()) >= EMBEDDING_BATCH:
                    self._replace(waiting)
        except InvalidInputError:  # the documents before the invalid one stay
            self._replace(waiting)
            raise
        self._replace(waiting)
        return self._changes

    def _changed(self, documents: Iterable[Document]) -> Iterator[ChangedDocument]:
        total = len(documents) if isinstance(documents, Sized) else None
        for count, document in enumerate(documents, start=1):
            self._progress("catalog", count, total or count)
            if not isinstance(document, Document):
                raise InvalidInputError(
                    f"A {type(document).__module__}.{type(document).__name__} can't be "
                    "ingested; give this package's Document. The adapters' to_documents "
                    "makes it of the frameworks' own."
                )
            key, content = document.key, _content_hash(document)
            stored = self._store.catalog.documents.content_hash(key)
            if self._latest.get(key, stored) == content:
                self._changes.setdefault(key, "unchanged")
                continue
            self._latest[key] = content
            self._changes.setdefault(key, "new" if stored is None else "changed")
            yield ChangedDocument(document, content)

    def _replace(self, waiting: dict[DocumentKey, Update]) -> None:
        self._store.changes.replace(list(waiting.values()))
        waiting.clear()


class Splitter:
    """Splits documents into chunks, and tokenizes these."""

    def __init__(self, facts: ModelFacts, info: StoreInfo) -> None:
        self._chunker = Chunker(info.chunk_tokens)
        self._encoder = ChunkEncoder(facts, info.record_signature)

    def split(self, changed: ChangedDocument) -> Update:
        """The records of a document's chunks. Raises `InvalidInputError` for one too long."""
        records = map(self._encoder.record, self._chunker.split(changed.document))
        return Update(changed.document.key, changed.content_hash, tuple(records))


def _content_hash(document: Document) -> str:
    content = [document.text, document.title, document.scope]
    content.append(metadata_json(document.id, document.metadata))
    for passage in document.passages:
        content += [passage.text, metadata_json(document.id, passage.metadata)]
    return sha256(json.dumps(content).encode()).hexdigest()
