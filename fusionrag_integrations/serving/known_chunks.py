"""Which known chunks a text contains: those of the catalog, and ad-hoc ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.prompt import Places
from fusionrag_integrations.prompt.assembled import TextMatch
from fusionrag_integrations.serving.adhoc import AdHocChunks
from fusionrag_integrations.serving.catalog_matcher import CatalogMatcher
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.store.catalog import Catalog


class KnownChunks:
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
        self._matcher = CatalogMatcher(catalog, self._records)

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
        return self._matcher.find(text, settings.handles, settings.scopes)

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
