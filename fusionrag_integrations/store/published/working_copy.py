"""WorkingCopy: the directory on this machine in which a published store is opened.

It is a store's directory like any other, but for its KV, which are copies of those in the storage.
It follows the versions at the URL when it is told to, and what is changed in it is published as
the next one.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from fusionrag_integrations.errors import StoreError, StoreMismatchError, StoreNotFoundError
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.copied import CopiedKVFiles
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.shared import SharedKVFiles
from fusionrag_integrations.store.layout import (
    CATALOG_FILE,
    DOCUMENTS_DIRECTORY,
    INDEX_DIRECTORY,
    KV_DIRECTORY,
    REVISION_FILE,
    UNFINISHED_FILE,
)
from fusionrag_integrations.store.objects.opening import open_objects
from fusionrag_integrations.store.opening import open_catalog
from fusionrag_integrations.store.published import blocks
from fusionrag_integrations.store.published.cache import LOCK, held_directory, named_errors
from fusionrag_integrations.store.published.reader_note import ReaderNote
from fusionrag_integrations.store.published.snapshot import copy_database, published_names, snapshot
from fusionrag_integrations.store.published.version import PublishedFile, Version
from fusionrag_integrations.store.published.version_log import VersionLog
from fusionrag_integrations.store.published.writer_lease import WriterLease
from fusionrag_integrations.support.atomic_files import (
    move_file,
    remove_file,
    write_file,
)
from fusionrag_integrations.support.threads import Closable

logger = logging.getLogger(__name__)

_NOTE = "version.json"  # of which version a working copy is, and whether it was changed since
_UNPUBLISHED = "unpublished.sqlite"  # a catalog with changes that the next writer goes on with
_DRAFTS = "drafts"


class WorkingCopy(Closable):
    """Of the store at a URL. path: its directory. version: None for a new store.

    shared: the files of KV that all machines see. files: the same with copies on this one.
    """

    def __init__(self, url: str, *, is_new: bool = False) -> None:
        """Bring a directory up to date with the newest version, and hold it until closed.

        is_new: begin a store there, which its first `publish` makes known. Raises
        `StoreNotFoundError` where there is none, `StoreUnreachableError`, `StoreError`, and
        `InvalidInputError` for a URL that can't be opened.
        """
        self._process = os.getpid()
        self._opened = ExitStack()
        with ExitStack() as unless_opened:
            unless_opened.callback(self._opened.close)
            self._objects = open_objects(url)
            self.url = self._objects.url
            self._opened.callback(self._objects.close)
            self._log = VersionLog(self._objects)
            self.version = self._log.newest()
            if self.version is None and not is_new:
                raise StoreNotFoundError(f"There is no store at {self.url}.")
            self.path = self._opened.enter_context(held_directory(self.url))
            self._drafts = self.path / _DRAFTS
            self._is_writable = False  # known once it was tried
            self._is_new = is_new  # until it is published
            self._note = self._opened.enter_context(ReaderNote(self._objects))
            if self.version is not None:
                self._note.set(self.version.number)
            if is_new:
                self._clear(keep=())
            elif self.version is not None and not self._has(self.version):
                self._clear(keep=published_names(self.path))  # whose blocks may be the same
                with named_errors(self.path, self.url):
                    self._fetch(self.version, replace_index=True)
            elif self.version is not None and self._is_changed():
                with named_errors(self.path, self.url):
                    self._set_aside(self.version)
            unless_opened.pop_all()
        self.shared = SharedKVFiles(self._objects)
        self.files = CopiedKVFiles(LocalKVFiles(self.path / KV_DIRECTORY), self.shared)

    def close(self) -> None:
        """Let other processes have the directory. May be called again."""
        self._opened.close()

    def is_behind(self) -> bool:
        """Whether there is a newer version. Raises as `follow` does, but for a mismatch."""
        self._check_process()
        return self._newer() is not None

    def follow(self, catalog: Catalog) -> bool:
        """Bring the open catalog to the newest version; returns whether there was a newer one.

        Changes that weren't published are kept while there is none, else given up. Raises
        `StoreMismatchError` where the store is another model's by now, and stays at its version;
        and `StoreError` in a forked child.
        """
        self._check_process()
        newest = self._newer()
        if newest is None:
            return False
        if newest.store != catalog.info:
            raise StoreMismatchError(
                f"Version {newest.number} of {self.url} is a store made anew, for "
                f"{newest.store.model_source} ({newest.store.kv_format}). This one, for "
                f"{catalog.info.model_source} ({catalog.info.kv_format}), stays open. Open the "
                "store anew to use the new one."
            )
        if self._is_changed() or (self.path / _UNPUBLISHED).exists():
            logger.warning(
                "Unpublished changes of %s give way to version %s", self.url, newest.number
            )
        self._note.set(*([self.version.number] if self.version else []), newest.number)
        with named_errors(self.path, self.url):
            self._fetch(newest, replace_index=False, swap=catalog.replace)
            self._forget_changes()
        self.version = newest
        self._note.set(newest.number)
        return True

    @contextmanager
    def writing(self, catalog: Catalog) -> Iterator[None]:
        """Hold the lease to write, over the newest version, and publish what the block changes.

        Where the block is interrupted nothing is published; the next one on this machine goes on
        from there. Raises `StoreBusyError` while another writer holds the lease, and as `follow`.
        """
        if not self._is_writable:
            self._objects.check_exclusive()
            self._is_writable = True
        with WriterLease(self._objects) as lease:
            self.follow(catalog)
            self._mark(changed=True)
            self._take_up(catalog)
            try:
                yield
            except StoreError:
                raise
            except Exception:  # what was stored before it stays, as in a directory
                self._publish(catalog.info, lease)
                raise
            self._publish(catalog.info, lease)

    def _newer(self) -> Version | None:
        newest, mine = self._log.newest(), self.version
        return None if newest and mine and newest.by == mine.by else newest

    def _check_process(self) -> None:
        """Raises `StoreError` in a forked child, whose files are its parent's too."""
        if self._process != os.getpid():
            raise StoreError(
                f"The working copy of {self.url} is another process's, which was forked: its "
                "version can't be changed here. Open the store in this process."
            )

    def publish_first(self, info: StoreInfo) -> None:
        """Publish a store that was just made, where there is none.

        Raises as `writing` does, and `StoreError` where there is one by now.
        """
        if self.version is not None:
            raise StoreError(f"There is a store at {self.url} already; open it instead.")
        self._objects.check_exclusive()
        with WriterLease(self._objects) as lease:
            self._mark(changed=True)
            self._publish(info, lease)

    def _publish(self, info: StoreInfo, lease: WriterLease) -> None:
        last = self.version
        with snapshot(self.path, self._drafts) as found:
            files = {name: blocks.upload(self._objects, path) for name, path in found.items()}
        if last is None or info != last.store or _truth(files) != _truth(last.files):
            lease.check()
            number = 1 if last is None else last.number + 1
            made = Version(number, time.time(), uuid4().hex, info, files)
            self._log.publish(made)
            self.version, self._is_new = made, False
            self._note.set(number)
            logger.info("Published version %s of %s", number, self.url)
        self._mark(changed=False)

    def _fetch(
        self,
        version: Version,
        *,
        replace_index: bool,
        swap: Callable[[Path], None] | None = None,
    ) -> None:
        """Make the files those of a version. swap: puts a catalog in the place of an open one."""
        for name in set(published_names(self.path)) - version.files.keys():
            if replace_index or not _is_of_index(name):
                remove_file(self.path / name)
        for name, file in version.files.items():
            path = self.path / name
            if (_is_of_index(name) and not replace_index) or blocks.matches(path, file):
                continue
            parts = blocks.download(self._objects, file, path)
            if name == CATALOG_FILE and swap is not None:
                draft = self._drafts / "next.sqlite"
                write_file(draft, parts, self._drafts)
                swap(draft)
            else:
                write_file(path, parts, self._drafts)
        self._mark(changed=False, version=version)

    def _set_aside(self, version: Version) -> None:
        """Put away what an interrupted change has left, so that the version itself is read."""
        draft = self._drafts / _UNPUBLISHED
        try:
            copy_database(self.path / CATALOG_FILE, draft)
            move_file(draft, self.path / _UNPUBLISHED)
        except StoreError as error:
            logger.warning("Unpublished changes of %s are lost: %s", self.url, error)
        remove_file(self.path / DOCUMENTS_DIRECTORY / REVISION_FILE)  # the version has a lower one
        self._fetch(version, replace_index=False)

    def _take_up(self, catalog: Catalog) -> None:
        """Go on from what `_set_aside` put away; the index follows the catalog."""
        aside = self.path / _UNPUBLISHED
        if aside.exists():
            try:
                catalog.replace(aside)
            except StoreError as error:
                logger.warning("Unpublished changes of %s are lost: %s", self.url, error)
                remove_file(aside)

    def _forget_changes(self) -> None:
        """What an interrupted change has left to be completed, which has given way."""
        remove_file(self.path / _UNPUBLISHED)
        remove_file(self.path / UNFINISHED_FILE)
        if (documents := self.path / DOCUMENTS_DIRECTORY).is_dir():
            shutil.rmtree(documents)

    def _clear(self, keep: Iterable[str]) -> None:
        """Remove what an earlier user has left, but for copies of KV and files to keep."""
        kept = {LOCK, *keep}
        for path in sorted(self.path.rglob("*"), reverse=True):
            name = path.relative_to(self.path).as_posix()
            if name not in kept and not name.startswith(f"{KV_DIRECTORY}/"):
                with suppress(OSError):  # a directory that isn't empty
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def _mark(self, *, changed: bool, version: Version | None = None) -> None:
        version = None if self._is_new else version or self.version
        note = {"url": self.url, "by": version.by if version else "", "changed": changed}
        with named_errors(self.path, self.url):
            write_file(self.path / _NOTE, [json.dumps(note).encode()], self._drafts)

    def _marked(self) -> tuple[str, bool]:
        """By whom the version is that is here, "" for none, and whether it was changed since."""
        try:
            note = json.loads((self.path / _NOTE).read_bytes())
            return str(note["by"]), bool(note["changed"])
        except (OSError, ValueError, LookupError, TypeError):
            return "", False

    def _has(self, version: Version) -> bool:
        """Whether the directory is of this version, perhaps with changes that aren't published."""
        if self._marked()[0] != version.by:
            return False
        try:
            with open_catalog(self.path) as catalog:
                return catalog.info == version.store
        except StoreError as error:
            logger.warning("%s is damaged, and is fetched again: %s", self.path, error)
            return False

    def _is_changed(self) -> bool:
        return self._marked()[1]


def _is_of_index(name: str) -> bool:
    return name.startswith(f"{INDEX_DIRECTORY}/")


def _truth(files: Mapping[str, PublishedFile]) -> dict[str, PublishedFile]:
    """The files without the index, which is made of them and changes when it is opened."""
    return {name: file for name, file in files.items() if not _is_of_index(name)}
