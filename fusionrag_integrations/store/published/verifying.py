"""Finds and fixes what is damaged or missing of a store at a URL. Needs no model.

versions   damaged, or the newest with blocks that are missing or damaged: reported; a working copy
           that has what is missing publishes it with its next change
kv         damaged or foreign records: removed; the next ingest computes them again
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from fusionrag_integrations.errors import (
    CatalogRowError,
    KVMissingError,
    KVRecordError,
    KVUnreadableError,
    StoreError,
    StoreNotFoundError,
    StoreUnreachableError,
)
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.kv.record_files import RecordFiles
from fusionrag_integrations.store.kv.shared import SharedKVFiles, object_name
from fusionrag_integrations.store.layout import CATALOG_FILE
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.objects.opening import open_objects
from fusionrag_integrations.store.published import blocks
from fusionrag_integrations.store.published.version import Version
from fusionrag_integrations.store.published.version_log import FOLDER, VersionLog
from fusionrag_integrations.store.published.writer_lease import WriterLease
from fusionrag_integrations.store.verify import Counted, Problem, problem_of
from fusionrag_integrations.support.atomic_files import write_file


def find_damage_at(url: str, progress: Counted = lambda done, total: None) -> Iterator[Problem]:
    """Everything that is damaged or missing of the newest version, and damaged older versions.

    Changes nothing. Raises `StoreNotFoundError` where there is no store, and
    `StoreUnreachableError`.
    """
    with closing(open_objects(url)) as objects:
        yield from _problems(objects, progress)


def repair_at(url: str, progress: Counted = lambda done, total: None) -> Iterator[Problem]:
    """Fix what `find_damage_at` finds, as far as that needs no model, yielding each problem.

    Raises as that does, and `StoreBusyError` while the store is being changed.
    """
    with closing(open_objects(url)) as objects:
        objects.check_exclusive()
        with WriterLease(objects):
            for problem in _problems(objects, progress):
                yield _fixed(objects, problem)


def _problems(objects: Objects, progress: Counted) -> Iterator[Problem]:
    log = VersionLog(objects)
    try:
        newest = log.newest()
    except StoreError as error:
        yield _damage(Path(FOLDER), error)
        return
    if newest is None:
        raise StoreNotFoundError(f"There is no store at {objects.url}.")
    yield from _older_problems(log, newest)
    with ExitStack() as opened:
        directory = Path(opened.enter_context(TemporaryDirectory()))
        is_whole = True
        for name, file in newest.files.items():
            try:
                parts = blocks.download(objects, file, directory / name)
                write_file(directory / name, parts, directory / "drafts", sync=False)
            except StoreError as error:
                is_whole = is_whole and name != CATALOG_FILE
                yield _damage(Path(name), error)
        if is_whole:
            catalog = opened.enter_context(Catalog.open(directory / CATALOG_FILE))
            yield from _row_problems(catalog)
            yield from _record_problems(objects, newest, catalog, progress)


def _damage(path: Path, error: StoreError) -> Problem:
    """A problem of the catalog. Raises the error where only the storage is away."""
    if isinstance(error, StoreUnreachableError):
        raise error
    return problem_of("catalog", path, error)


def _older_problems(log: VersionLog, newest: Version) -> Iterator[Problem]:
    for number in log.numbers():
        try:
            if number != newest.number:
                log.read(number)
        except StoreError as error:
            yield _damage(Path(FOLDER), error)


def _row_problems(catalog: Catalog) -> Iterator[Problem]:
    for _, _, message in catalog.damaged_chunks():
        yield problem_of("catalog", Path(CATALOG_FILE), CatalogRowError(message))


def _record_problems(
    objects: Objects, version: Version, catalog: Catalog, progress: Counted
) -> Iterator[Problem]:
    if version.store.kv == "none":
        return
    files = SharedKVFiles(objects)
    records = RecordFiles(files, version.store.record_signature)
    keys = sorted(catalog.kv.live_keys())
    for done, key in enumerate(keys, start=1):
        try:
            records.check(key)
        except KVUnreadableError:
            raise  # of the storage, not of the record
        except KVRecordError as error:
            yield problem_of("kv", Path(object_name(key)), error)
        progress(done, len(keys))


def _fixed(objects: Objects, problem: Problem) -> Problem:
    if problem.area != "kv" or problem.error == KVMissingError.__name__:
        return problem
    objects.delete([problem.path.as_posix()])
    return replace(problem, fixed=True)
