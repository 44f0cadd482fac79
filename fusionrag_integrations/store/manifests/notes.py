"""What a store's files say of the store itself: store.json, its copy, revision.json, index.json.

By them a catalog that is out of date, as one restored from a backup, or another store's is refused.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fusionrag_integrations.errors import InvalidInputError, StoreError
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.layout import INDEX_NOTE_FILE, INFO_FILE, REVISION_FILE
from fusionrag_integrations.store.manifests.json_files import read_json, write_json


@dataclass(frozen=True, slots=True)
class KnownRevision:
    """A revision that a store's catalog has reached, at least."""

    store_id: str
    revision: int


class StoreNotes:
    """Of one store. Reading and writing raise `StoreError`."""

    def __init__(self, store: Path, documents: Path, drafts: Path) -> None:
        """documents: the directory of manifests, with the copy. drafts: of unfinished files."""
        self.info_path = store / INFO_FILE
        self.info_copy = documents / INFO_FILE
        self.revision_path = documents / REVISION_FILE
        self.index_path = store / INDEX_NOTE_FILE
        self._drafts = drafts

    def write_info(self, info: StoreInfo) -> None:
        """Write what the store was made with to store.json and its copy, where missing."""
        for path in (self.info_path, self.info_copy):
            if not path.exists():
                write_json(path, asdict(info), self._drafts, sync=True)

    def info(self) -> StoreInfo:
        """What the store was made with, by store.json."""
        return read_info(self.info_path)

    def info_paths(self) -> list[Path]:
        """store.json, and its copy where there is one."""
        copies = [self.info_copy] if os.path.lexists(self.info_copy) else []
        return [self.info_path, *copies]

    def readable_infos(self) -> list[StoreInfo]:
        """What can be read of these, store.json first."""
        found: list[StoreInfo] = []
        for path in self.info_paths():
            with suppress(StoreError):
                found.append(read_info(path))
        return found

    def store_ids(self) -> list[str]:
        """The store's id, once for each of store.json, its copy and revision.json that has one."""
        revision = self.revision()
        ids = [info.store_id for info in self.readable_infos()]
        return ids if revision is None else [*ids, revision.store_id]

    def write_revision(self, revision: int, store_id: str) -> None:
        """Note that the catalog of a store has reached a revision."""
        content = asdict(KnownRevision(store_id, revision))
        write_json(self.revision_path, content, self._drafts, sync=False)

    def revision(self) -> KnownRevision | None:
        """A revision that the catalog has reached; None where it can't be read."""
        try:
            return self.check_revision()
        except StoreError:
            return None  # it isn't synced to the disk, so a crash may lose it

    def check_revision(self) -> KnownRevision | None:
        """The same; raises where there is something that can't be read."""
        if not os.path.lexists(self.revision_path):
            return None
        try:
            content = read_json(self.revision_path)
            return KnownRevision(str(content["store_id"]), int(content["revision"]))
        except (LookupError, TypeError, ValueError) as error:
            raise StoreError(f"{self.revision_path} is damaged: {error!r}") from error

    def write_index_place(self, place: str) -> None:
        """Note that the store's index isn't in its directory, but at a place."""
        if self.index_place() != place:
            write_json(self.index_path, {"place": place}, self._drafts, sync=True)

    def index_place(self) -> str | None:
        """Where the index is, if not in the store's directory; None also where that is damaged."""
        try:
            return self.check_index_place()
        except StoreError:
            return None

    def check_index_place(self) -> str | None:
        """The same; raises where there is something that can't be read."""
        if not os.path.lexists(self.index_path):
            return None
        try:
            return str(read_json(self.index_path)["place"])
        except (LookupError, TypeError) as error:
            raise StoreError(f"{self.index_path} is damaged: {error!r}") from error


def read_info(path: Path) -> StoreInfo:
    """What a store was made with, by store.json or its copy. Raises `StoreError`."""
    try:
        return StoreInfo(**read_json(path))
    except (TypeError, InvalidInputError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error
