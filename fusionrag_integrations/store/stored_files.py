"""A store's catalog and the files of its KV, without an index, an embedding or a model."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fusionrag_integrations.store.generations import directory_of
from fusionrag_integrations.store.kv.base import KVFiles
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_files import RecordFiles
from fusionrag_integrations.store.layout import KV_DIRECTORY
from fusionrag_integrations.store.objects.opening import is_url
from fusionrag_integrations.store.opening import open_catalog
from fusionrag_integrations.store.published.working_copy import WorkingCopy
from fusionrag_integrations.support.threads import Closable


class StoredFiles(Closable):
    """To look at what a store holds. catalog, records: its own. facts: of where it is.

    At a URL, the catalog is the newest version's and the records are those that machines share.
    """

    def __init__(self, place: str | Path) -> None:
        """Raises as `Store.open` does."""
        with ExitStack() as opened:
            self.facts: dict[str, Any] = {}
            files: KVFiles
            if is_url(place):
                copy = opened.enter_context(WorkingCopy(place))
                directory, files = copy.path, copy.shared
                self.facts = {"version": copy.version.number if copy.version else 0}
            else:
                directory = directory_of(place)
                files = LocalKVFiles(directory / KV_DIRECTORY)
            self.catalog = opened.enter_context(open_catalog(directory))
            self.records = RecordFiles(files, self.catalog.info.record_signature)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close what was opened. May be called again."""
        self._opened.close()
