"""Documents -> chunks in the catalog, with their tokens; a changed document replaces its chunks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sized
from hashlib import sha256
from typing import Literal

from fusionrag_integrations.documents.chunking import Chunker
from fusionrag_integrations.documents.keys import metadata_json
from fusionrag_integrations.documents.types import Document, DocumentKey
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.ingest.chunk_encoder import ChunkEncoder
from fusionrag_integrations.store.changes import EMBEDDING_BATCH, Update
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.support.inputs import holds_several
from fusionrag_integrations.support.progress import Progress

Change = Literal["new", "changed", "unchanged"]


class DocumentUpdates:
    """Brings a store's documents up to date."""

    def __init__(
        self, model: PlainModel, store: Store, prefix_tokens: int, progress: Progress
    ) -> None:
        """prefix_tokens: how many the ingest prefix has."""
        self._store = store
        self._progress = progress
        self._encoder = ChunkEncoder(model, store.catalog.info.record_signature, prefix_tokens)

    def update(self, documents: Iterable[Document]) -> dict[DocumentKey, Change]:
        """Returns whether each document changed. A later one replaces one of the same key."""
        if not holds_several(documents):
            raise InvalidInputError(
                f"Give ingest a list of documents; got a single {type(documents).__name__}."
            )
        chunker = Chunker(self._store.catalog.info.chunk_tokens)
        changes: dict[DocumentKey, Change] = {}
        waiting: list[Update] = []
        total = len(documents) if isinstance(documents, Sized) else None
        try:
            for count, document in enumerate(documents, start=1):
                self._progress("catalog", count, total or count)
                if not isinstance(document, Document):
                    raise InvalidInputError(
                        f"A {type(document).__module__}.{type(document).__name__} can't be "
                        "ingested; give this package's Document. The adapters' to_documents "
                        "makes it of the frameworks' own."
                    )
                key = document.key
                if key in changes:
                    self._replace(waiting)
                content = _content_hash(document)
                before = self._store.catalog.documents.content_hash(key)
                if before == content:
                    changes.setdefault(key, "unchanged")
                    continue
                records = tuple(map(self._encoder.record, chunker.split(document)))
                waiting.append(Update(document.key, content, records))
                changes.setdefault(key, "new" if before is None else "changed")
                if sum(len(update.records) for update in waiting) >= EMBEDDING_BATCH:
                    self._replace(waiting)
        except InvalidInputError:  # the documents before the invalid one stay
            self._replace(waiting)
            raise
        self._replace(waiting)
        return changes

    def _replace(self, waiting: list[Update]) -> None:
        self._store.changes.replace(waiting)
        waiting.clear()


def _content_hash(document: Document) -> str:
    content = [document.text, document.title, document.scope]
    content.append(metadata_json(document.id, document.metadata))
    for passage in document.passages:
        content += [passage.text, metadata_json(document.id, passage.metadata)]
    return sha256(json.dumps(content).encode()).hexdigest()
