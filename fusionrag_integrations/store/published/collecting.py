"""Deletes the versions of a store that nobody needs any more, with the KV that only they used."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from fusionrag_integrations.errors import StoreError, StoreNotFoundError
from fusionrag_integrations.store.catalog.database import named_errors
from fusionrag_integrations.store.kv.local import SUFFIX
from fusionrag_integrations.store.layout import CATALOG_FILE, KV_DIRECTORY
from fusionrag_integrations.store.objects.base import ObjectEntry, Objects
from fusionrag_integrations.store.objects.opening import open_objects
from fusionrag_integrations.store.published import blocks, reader_note, writer_lease
from fusionrag_integrations.store.published.version import Version
from fusionrag_integrations.store.published.version_log import VersionLog
from fusionrag_integrations.support.atomic_files import write_file

DAY = 86_400.0  # seconds


@dataclass(frozen=True, slots=True)
class Collected:
    """What was deleted. kept_versions: numbers of those whose files and KV stay. nbytes: of KV and
    blocks.
    """

    kept_versions: tuple[int, ...]
    versions: int
    kv_records: int
    blocks: int
    nbytes: int


def collect(url: str, grace: float = DAY) -> Collected:
    """Delete what no version uses that is newest, has a reader, or was the newest within `grace`.

    grace: in seconds. What was written within it stays too: a writer may be about to publish it.
    Ends in a new version, equal to the newest, so that no writer that began before can publish KV
    that is gone. Raises `StoreNotFoundError`, `StoreBusyError` while the store is being changed,
    `StoreError` where a version that stays is damaged, and `StoreUnreachableError`.
    """
    with closing(open_objects(url)) as objects:
        log = VersionLog(objects)
        if log.newest() is None:
            raise StoreNotFoundError(f"There is no store at {objects.url}.")
        objects.check_exclusive()
        with writer_lease.WriterLease(objects) as lease:
            return _collect(objects, log, lease, time.time() - grace)


def _collect(
    objects: Objects, log: VersionLog, lease: writer_lease.WriterLease, since: float
) -> Collected:
    noted, old_notes = reader_note.noted(objects)
    kept = _kept(log, noted, since)
    newest = kept[0]
    log.publish(replace(newest, number=newest.number + 1, made=time.time(), by=uuid4().hex))
    deleted = log.delete_below(kept[-1].number)  # first, so that no reader begins with one
    used_blocks = {block for version in kept for block in version.blocks}
    used_keys = _keys(objects, kept)
    old_blocks = _unused(objects, blocks.FOLDER, used_blocks, since)
    old_records = _unused(objects, KV_DIRECTORY, used_keys, since)
    lease.check()  # another writer may have used them since they were listed
    objects.delete([entry.name for entry in (*old_blocks, *old_records)])
    objects.delete(old_notes)
    return Collected(
        kept_versions=(*(version.number for version in reversed(kept)), newest.number + 1),
        versions=deleted,
        kv_records=len(old_records),
        blocks=len(old_blocks),
        nbytes=sum(entry.nbytes for entry in (*old_blocks, *old_records)),
    )


def _kept(log: VersionLog, noted: set[int], since: float) -> list[Version]:
    """The newest version, and those that a reader has or that were the newest since; newest first.

    Raises `StoreError` where one of them is damaged: which KV it has isn't known.
    """
    kept: list[Version] = []
    next_made = inf  # when the version was made that came after
    for number in reversed(log.numbers()):
        is_kept = number in noted or next_made >= since
        try:
            version = log.read(number)
        except StoreError:
            if is_kept:
                raise
            continue
        if is_kept:
            kept.append(version)
        next_made = version.made
    return kept


def _unused(objects: Objects, folder: str, used: set[str], since: float) -> list[ObjectEntry]:
    """The objects in a folder that are old, and whose last names aren't in use."""

    def is_used(entry: ObjectEntry) -> bool:
        return entry.name.rpartition("/")[2].removesuffix(SUFFIX) in used

    return [e for e in objects.entries(folder) if e.modified < since and not is_used(e)]


def _keys(objects: Objects, versions: Iterable[Version]) -> set[str]:
    """The keys of the KV that any of these versions uses, by their catalogs."""
    keys: set[str] = set()
    with TemporaryDirectory() as directory:
        drafts, path = Path(directory, "drafts"), Path(directory, CATALOG_FILE)
        for catalog in {version.files[CATALOG_FILE] for version in versions}:
            write_file(path, blocks.download(objects, catalog, path), drafts, sync=False)
            query = "SELECT isolated_key FROM chunks UNION SELECT fused_key FROM chunks"
            with named_errors(path), closing(sqlite3.connect(path)) as db:
                keys.update(row[0] for row in db.execute(query))
    return keys
