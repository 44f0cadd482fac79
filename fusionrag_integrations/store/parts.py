"""The parts of a store, opened together: those in its directory, and those that are given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from uuid import uuid4

from fusionrag_integrations.documents.embedding import Embedder, as_embedder, probe
from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.chosen_index import opened_index
from fusionrag_integrations.store.generations import directory_of
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.base import KVFiles
from fusionrag_integrations.store.kv.copied import CopiedKVFiles
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.layout import CATALOG_FILE, KV_DIRECTORY
from fusionrag_integrations.store.manifests import Manifests
from fusionrag_integrations.store.objects.opening import is_url
from fusionrag_integrations.store.opening import open_catalog
from fusionrag_integrations.store.published.working_copy import WorkingCopy
from fusionrag_integrations.store.stored_info import is_store
from fusionrag_integrations.store.vector_index.base import GivenIndex, VectorIndex
from fusionrag_integrations.store.vector_index.given import IndexElsewhere
from fusionrag_integrations.support.atomic_files import make_directory, remove_file
from fusionrag_integrations.support.inputs import check_text, shown
from fusionrag_integrations.support.threads import Closable


@dataclass(frozen=True, slots=True, eq=False)
class StoreParts(Closable):
    """What a `Store` consists of.

    path: the directory, or the working copy's. working_copy: of a store at a URL. fill_index: add
    chunks that the index lacks from the catalog; else an index that lacks chunks counts as damaged.
    index_place: where the index is, if not in the directory. opened: what `close` closes.
    """

    path: Path
    catalog: Catalog
    embedder: Embedder
    index: VectorIndex
    files: KVFiles
    working_copy: WorkingCopy | None
    fill_index: bool
    index_place: str
    opened: ExitStack

    @classmethod
    def open(
        cls,
        place: str | Path,
        embedding: object | None,
        index: GivenIndex | None,
        files: KVFiles | None,
    ) -> Self:
        """See `Store.open`."""
        embedder = as_embedder(embedding)
        with ExitStack() as opened:
            copy = opened.enter_context(WorkingCopy(place)) if is_url(place) else None
            # Once for all parts, since a link may change.
            path = directory_of(place) if copy is None else copy.path
            catalog = opened.enter_context(open_catalog(path))
            return cls._of(path, catalog, embedder, index, files, copy, opened)

    @classmethod
    def create(
        cls,
        place: str | Path,
        info: StoreInfo,
        embedding: object | None,
        index: GivenIndex | None,
        files: KVFiles | None,
    ) -> Self:
        """See `Store.create`."""
        embedder = as_embedder(embedding)
        info = replace(info, probes=probe(embedder), store_id=uuid4().hex)
        if index is not None:
            IndexElsewhere.of(index, Path(place), info.store_id)  # refused before anything is made
        with ExitStack() as opened:
            copy = opened.enter_context(WorkingCopy(place, is_new=True)) if is_url(place) else None
            path = _empty_directory(Path(place)) if copy is None else copy.path
            # Before other files: of two processes only one succeeds, and the other changes none.
            catalog = opened.enter_context(Catalog.create(path / CATALOG_FILE, info))
            Manifests(path).notes.write_info(info)
            return cls._of(path, catalog, embedder, index, files, copy, opened)

    @classmethod
    def _of(
        cls,
        path: Path,
        catalog: Catalog,
        embedder: Embedder,
        index: GivenIndex | None,
        files: KVFiles | None,
        copy: WorkingCopy | None,
        opened: ExitStack,
    ) -> Self:
        """The directory's own index and files where none are given. opened: becomes the parts'."""
        given = None if index is None else IndexElsewhere.of(index, path, catalog.info.store_id)
        # The index of a working copy follows the catalog, as one that is given.
        fill = given is not None or copy is not None
        return cls(
            path=path,
            catalog=catalog,
            embedder=embedder,
            index=opened.enter_context(opened_index(path, catalog, given, fill)),
            files=files or (LocalKVFiles(path / KV_DIRECTORY) if copy is None else copy.files),
            working_copy=copy,
            fill_index=fill,
            index_place=given.place if given else "",
            opened=opened.pop_all(),
        )

    @property
    def copies(self) -> KVFiles | None:
        """The copies on this machine of files that machines share."""
        return self.files.copies if isinstance(self.files, CopiedKVFiles) else None

    def records(self, files: KVFiles) -> RecordStore:
        """This store's records in some files."""
        info = self.catalog.info
        return RecordStore(files, info.record_signature, info.kv_format)

    @contextmanager
    def until_taken(self) -> Iterator[Self]:
        """Closes the parts if the block raises."""
        try:
            yield self
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all that was opened. May be called again."""
        self.opened.close()
        self.catalog.close()


def _empty_directory(path: Path) -> Path:
    """A directory for a new store, with nothing of an older one. Raises as `Store.create` does."""
    check_text(f"The path {shown(str(path))} of a store", str(path.absolute()))
    path = directory_of(path)
    is_there = is_store(path)
    try:
        make_directory(path)
        if not is_there:  # left by an interrupted creation
            remove_file(Manifests(path).notes.info_path)
    except OSError as error:
        raise StoreError(f"Can't make a store at {path}: {error}") from error
    return path
