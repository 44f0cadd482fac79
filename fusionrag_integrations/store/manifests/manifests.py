"""The files of a store's documents, and their deletion.

A manifest is written before the catalog changes, so after a crash it is of the document before or
after the change. To delete a document, its manifest is moved first and removed last, so that the
next change completes an interrupted delete.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fusionrag_integrations.documents.keys import document_name
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.layout import (
    ASIDE_SUFFIX,
    DELETED_DIRECTORY,
    DOCUMENTS_DIRECTORY,
    DRAFTS_DIRECTORY,
)
from fusionrag_integrations.store.manifests.json_files import read_json, remove_json, write_json
from fusionrag_integrations.store.manifests.manifest import Manifest
from fusionrag_integrations.store.manifests.notes import StoreNotes
from fusionrag_integrations.support.atomic_files import make_directory, move_file, sweep


class Manifests:
    """The manifests of one store. notes: what the files say of the store itself."""

    def __init__(self, store: Path) -> None:
        self._directory = store / DOCUMENTS_DIRECTORY
        self._deleted = self._directory / DELETED_DIRECTORY
        self._drafts = self._directory / DRAFTS_DIRECTORY
        self.notes = StoreNotes(store, self._directory, self._drafts)
        sweep(self._drafts)

    def path_of(self, document: DocumentKey) -> Path:
        """A document's file."""
        name = document_name(document.scope, document.id)
        return self._directory / name[:2] / f"{name}.json"

    def paths(self) -> list[Path]:
        """The files of all documents, ascending."""
        found = sorted(self._directory.glob("[0-9a-f][0-9a-f]/*.json"))
        return [path for path in found if not path.parent.is_symlink()]

    def exist(self) -> bool:
        """Whether there are any files of a store's documents, or store.json."""
        notes = self.notes
        return notes.info_path.exists() or notes.info_copy.exists() or any(self.paths())

    def write(self, manifest: Manifest) -> None:
        """Put a document in the place of what its key named before. Raises `StoreError`.

        Doesn't wait until it is on the disk: the catalog does, and has all of it.
        """
        path = self.path_of(manifest.document)
        write_json(path, manifest.to_json(), self._drafts, sync=False)

    def read(self, path: Path, signature: str | None = None) -> Manifest:
        """The document in one of `paths()`. Raises `StoreError`, naming the file.

        signature: of the store's KV records. A document whose keys aren't made with it is refused:
        its tokens are another model's.
        """
        content = read_json(path)
        try:
            manifest = Manifest.from_json(content)
        except (LookupError, TypeError, ValueError, struct.error) as error:
            raise StoreError(f"{path} is damaged: {error!r}") from error
        if path != self.path_of(manifest.document):
            raise StoreError(f"{path} is of another document, {manifest.document.id!r}.")
        if signature is not None and not manifest.is_made_with(signature):
            raise StoreError(f"{path} is of another store: its tokens and keys aren't this one's.")
        return manifest

    def unknown(self, known: Iterable[DocumentKey], signature: str | None = None) -> list[Manifest]:
        """The documents that can be read and are not among those that are known.

        signature: as in `read`.
        """
        paths = {self.path_of(key) for key in known}
        found: list[Manifest] = []
        for path in self.paths():
            if path not in paths:
                with suppress(StoreError):  # named where the documents are checked
                    found.append(self.read(path, signature))
        return found

    def info_of_most(self, others: Iterable[StoreInfo] = ()) -> StoreInfo:
        """What most of the documents were made with, of what the notes say, and others.

        Raises `StoreError` where there is no such note, or no document was made with one.
        """
        infos = [*self.notes.readable_infos(), *others]
        if not infos:
            return self.notes.info()  # which raises
        revision, documents = self.notes.revision(), self.unknown([])

        def fits(info: StoreInfo) -> tuple[int, bool]:
            is_noted = revision is not None and revision.store_id == info.store_id
            made_with = (d.is_made_with(info.record_signature) for d in documents)
            return sum(made_with), is_noted

        best = max(infos, key=fits)
        if documents and not fits(best)[0]:
            raise StoreError(
                f"No document in {self._directory} is of the store that {self.notes.info_path} "
                "tells of: they were made by another model, format or salt. Put their own "
                "store.json back."
            )
        return best

    def begin_delete(self, document: DocumentKey) -> None:
        """Move a document's file to those that are being deleted, if there is one.

        What `repair` has put aside of it is removed first. Raises `StoreError`.
        """
        path = self.path_of(document)
        self.remove_aside(document)
        try:
            make_directory(self._deleted)
            move_file(path, self._deleted / path.name)
        except OSError as error:
            raise StoreError(f"Can't delete {path}: {error}") from error

    def remove_aside(self, document: DocumentKey) -> None:
        """Remove what `repair` has put aside of a document: it has its text. Raises `StoreError`"""
        aside = aside_of(self.path_of(document))
        if aside.is_file() or aside.is_symlink():
            remove_json(aside)

    def deleting(self) -> bool:
        """Whether a deletion has begun, and isn't finished."""
        return any(self._deleted.glob("*.json"))

    def deleted(self, documents: Iterable[DocumentKey]) -> list[DocumentKey]:
        """Those of some documents whose deletion has begun, and isn't finished."""
        left = {path.name for path in self._deleted.glob("*.json")}
        return [key for key in documents if self.path_of(key).name in left] if left else []

    def finish_deletes(self) -> None:
        """Remove all that `begin_delete` moved. Raises `StoreError`."""
        for path in self._deleted.glob("*.json"):
            remove_json(path)


def aside_of(path: Path) -> Path:
    """Where `repair` puts a damaged file, which may be the only copy of something."""
    return path.with_name(f"{path.name}{ASIDE_SUFFIX}")
