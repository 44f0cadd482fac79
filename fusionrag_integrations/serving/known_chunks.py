"""Which known chunks a text contains: those of the catalog, and ad-hoc ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.prompt import Places
from fusionrag_integrations.prompt.assembled import TextMatch
from fusionrag_integrations.prompt.match import ChunkMatcher
from fusionrag_integrations.prompt.resolve import resolve
from fusionrag_integrations.serving.adhoc import AdHocChunks
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.support.forks import Forkable


class KnownChunks(Forkable):
    """Finds the chunks of one store; sees changes of its documents by other processes too."""

    def __init__(
        self,
        catalog: Catalog,
        adhoc: AdHocChunks,
        new_record: Callable[[Chunk], ChunkRecord],
    ) -> None:
        """new_record: encodes a chunk."""
        self._catalog = catalog
        self._adhoc = adhoc
        self._new_record = new_record
        self._known: tuple[int, ChunkMatcher] | None = None  # the texts' revision, and its matcher
        self.in_child()
        super().__init__()

    def in_child(self) -> None:
        """A thread of the parent may hold the lock."""
        self._refreshing = Lock()

    def find(self, text: str, settings: AnswerSettings) -> list[TextMatch]:
        """The known chunks in a text that the request may use, in order."""
        ingested = self._ingested(text, settings)
        new = self._adhoc.find(text, ingested, settings.scopes)
        return sorted([*ingested, *new], key=lambda match: match.start)

    def places(self, text: str, settings: AnswerSettings) -> Places:
        """Their places, and those of ad-hoc chunks that aren't admitted."""
        ingested = self._ingested(text, settings)
        places = [range(match.start, match.stop) for match in ingested]
        places += self._adhoc.places(text, ingested, settings.scopes)
        return tuple(sorted((place.start, place.stop) for place in places))

    def _ingested(self, text: str, settings: AnswerSettings) -> list[TextMatch]:
        handles, scopes = settings.handles, settings.scopes
        return resolve(self._matcher().find(text, self._records, handles, scopes), handles)

    def _matcher(self) -> ChunkMatcher:
        """A matcher of the catalog's texts as they are now; only new ones are read."""
        with self._refreshing:  # one thread reads, the others wait for it
            revision = self._catalog.texts_revision
            known, matcher = self._known or (-1, None)
            if matcher is None or known != revision:
                ids = self._catalog.chunks.all_ids()
                matcher = ChunkMatcher(ids, self._catalog.chunks.scoped_texts, matcher)
                self._known = revision, matcher
            return matcher

    def _records(self, chunk_ids: Sequence[str]) -> dict[str, ChunkRecord]:
        """Records by chunk id. Damaged tokens are encoded again from the text."""
        found = self._catalog.chunks.readable(chunk_ids)
        return {
            chunk_id: record if record.encoded.token_ids else self._encoded(record)
            for chunk_id, record in found.items()
        }

    def _encoded(self, record: ChunkRecord) -> ChunkRecord:
        new = self._new_record(record.chunk)
        return replace(record, encoded=new.encoded, isolated_key=new.isolated_key)
