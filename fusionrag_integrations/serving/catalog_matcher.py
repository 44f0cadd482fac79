"""A catalog's texts in prompts, as the catalog is now. Needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.prompt.assembled import TextMatch
from fusionrag_integrations.prompt.found import ReadRecords
from fusionrag_integrations.prompt.match import ChunkMatcher
from fusionrag_integrations.prompt.resolve import resolve
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.support.forks import Forkable


class CatalogMatcher(Forkable):
    """Finds the texts of one catalog; sees changes of its documents by other processes too."""

    def __init__(self, catalog: Catalog, read_records: ReadRecords) -> None:
        """read_records: reads what is known of chunks of the catalog."""
        self._catalog = catalog
        self._read_records = read_records
        self._known: tuple[int, ChunkMatcher] | None = None  # the texts' revision, and its matcher
        self.in_child()
        super().__init__()

    def in_child(self) -> None:
        """A thread of the parent may hold the lock."""
        self._refreshing = Lock()

    def find(
        self, text: str, handles: Sequence[KVHandle], scopes: Sequence[str] | None
    ) -> list[TextMatch]:
        """The chunks in a text, in order. handles, scopes: as in `ChunkMatcher.find`."""
        found = self._matcher().find(text, self._read_records, handles, scopes)
        return resolve(found, handles)

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
