"""Fixes what `verify.py` finds. Needs no model.

catalog       missing, damaged as a whole, another store's or out of date: rebuilt from manifests
              damaged rows of a document: restored from its manifest
              damaged row about the store: restored from store.json or its copy
documents     damaged or missing manifest, or one of another text: written from the catalog
              manifest that isn't in the catalog: added to it, or put aside if another model's
              interrupted delete: completed
index         differs from the catalog, or finds wrong chunks: rebuilt from the catalog's vectors
kv            damaged or foreign records: removed; the next ingest computes them again
corrections   damaged: removed; the next ingest measures them again
calibration   damaged: put aside; `fusionrag calibrate` measures it again

Damaged files that may be the only copy of something are put aside, as *.damaged. Links, pipes and
empty directories that replace a file are removed; a directory that isn't empty stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from filelock import Timeout

from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import (
    CatalogRowError,
    KVCorruptError,
    KVForeignError,
    StoreError,
)
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.catalog.database import batches
from fusionrag_integrations.store.changes import manifest_of
from fusionrag_integrations.store.generations import directory_of
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.layout import CATALOG_FILE, KV_DIRECTORY, LOCK_FILE
from fusionrag_integrations.store.manifests import Manifest, Manifests
from fusionrag_integrations.store.rebuild import (
    add_manifests,
    put_aside,
    rebuild_catalog,
    remove_entry,
    restore_store_row,
)
from fusionrag_integrations.store.vector_index.chroma import ChromaIndex
from fusionrag_integrations.store.vector_index.filling import restore_vectors
from fusionrag_integrations.store.verify import (
    Counted,
    DamagedRow,
    Problem,
    calibration_problems,
    checked_catalog,
    correction_problems,
    document_problems,
    existing_manifests,
    index_problems,
    note_problems,
    problem_of,
    record_problems,
    row_problems,
)
from fusionrag_integrations.support.atomic_files import locked


def repair(store: Path, progress: Counted = lambda done, total: None) -> Iterator[Problem]:
    """Fix what `find_damage` finds, yielding each problem. What is intact isn't changed.

    Raises `StoreNotFoundError`, and `StoreError` while the store is being changed, or where neither
    the catalog nor `store.json` tells what it was made with.
    """
    store = directory_of(store)
    manifests = existing_manifests(store)
    try:
        lock = locked(store / LOCK_FILE)
    except Timeout as error:
        raise StoreError(f"The store at {store} is being changed; wait for it to end.") from error
    except OSError as error:
        raise StoreError(f"The store at {store} can't be written: {error}.") from error
    with lock:
        try:
            catalog = checked_catalog(store)
        except StoreError as error:
            if not restore_store_row(store, manifests):
                rebuild_catalog(store, manifests)
            yield problem_of("catalog", store / CATALOG_FILE, error, fixed=True)
            catalog = checked_catalog(store)
        with closing(catalog):
            yield from _fix_notes(store, manifests, catalog)
            yield from _fix_documents(store, manifests, catalog)
            for problem in index_problems(store, catalog):
                _rebuild_index(problem.path, catalog)
                yield replace(problem, fixed=True)
            files = LocalKVFiles(store / KV_DIRECTORY)
            for problem in record_problems(store, catalog, progress):
                yield replace(problem, fixed=_fix_record(files, problem))
            files.sweep()
            for problem in list(correction_problems(store, catalog)):
                yield replace(problem, fixed=remove_entry(problem.path))
            for problem in list(calibration_problems(store, catalog)):
                put_aside(problem.path)
                yield replace(problem, fixed=True)


def _fix_notes(store: Path, manifests: Manifests, catalog: Catalog) -> Iterator[Problem]:
    for problem in list(note_problems(store, manifests, catalog)):
        fixed = remove_entry(problem.path)
        if fixed and problem.path == manifests.notes.revision_path:
            manifests.notes.write_revision(catalog.revision, catalog.info.store_id)
        yield replace(problem, fixed=fixed)
    manifests.notes.write_info(catalog.info)


def _fix_documents(store: Path, manifests: Manifests, catalog: Catalog) -> Iterator[Problem]:
    catalog.documents.delete(manifests.deleted(catalog.documents.all()))
    manifests.finish_deletes()
    damaged = list(row_problems(store, manifests, catalog))
    left = _fix_rows(damaged, manifests, catalog)
    yield from (replace(row.problem, fixed=row.document not in left) for row in damaged)
    problems = list(document_problems(store, manifests, catalog))
    fixed = [_fix_manifest(problem.path, manifests, catalog) for problem in problems]
    add_manifests(
        manifests.unknown(catalog.documents.all(), catalog.info.record_signature), catalog
    )
    for problem, is_fixed in zip(problems, fixed, strict=True):
        yield replace(problem, fixed=is_fixed)


def _rebuild_index(path: Path, catalog: Catalog) -> None:
    """Rebuild the index from the catalog's vectors; the next ingest embeds chunks without one."""
    if path.exists():
        put_aside(path)
    with closing(ChromaIndex(path)) as index:
        for batch in batches(catalog.chunks.ids()):
            restore_vectors(catalog, index, batch)
    catalog.raise_revision()


def _fix_rows(
    damaged: Sequence[DamagedRow], manifests: Manifests, catalog: Catalog
) -> set[DocumentKey]:
    """Restore documents' rows from their manifests; returns the documents that are still damaged.

    Rows of ad-hoc chunks are deleted.
    """
    catalog.adhoc.delete([row.chunk_id for row in damaged if row.document is None])
    intact: list[Manifest] = []
    unreadable: set[DocumentKey] = set()
    for document in dict.fromkeys(row.document for row in damaged if row.document is not None):
        try:
            path = manifests.path_of(document)
            intact.append(manifests.read(path, catalog.info.record_signature))
        except StoreError:
            catalog.documents.mark_changed(document)
            unreadable.add(document)
    add_manifests(intact, catalog)
    return unreadable | set(catalog.vectors.missing().values())


def _fix_manifest(path: Path, manifests: Manifests, catalog: Catalog) -> bool:
    """Fix one of `document_problems`; returns whether that was possible."""
    if path in manifests.notes.info_paths():
        if not remove_entry(path):
            return False
        manifests.notes.write_info(catalog.info)
        return True
    for key in catalog.documents.all():
        if manifests.path_of(key) == path:
            with suppress(CatalogRowError):  # reported as a problem of the catalog
                manifest = manifest_of(catalog, key)
                if not _clear(path, manifests):
                    return False
                manifests.write(manifest)
            return True
    try:
        manifests.read(path, catalog.info.record_signature)
    except StoreError:
        put_aside(path)
    return True


def _clear(path: Path, manifests: Manifests) -> bool:
    """Remove a manifest, or put it aside if it is readable: it may be the only copy of its text."""
    try:
        manifests.read(path)
    except StoreError:
        return remove_entry(path)
    put_aside(path)
    return True


def _fix_record(files: LocalKVFiles, problem: Problem) -> bool:
    """Remove a record that can't be used. Other files in the directory stay."""
    unusable = problem.error in (KVCorruptError.__name__, KVForeignError.__name__)
    return unusable and files.is_record(problem.path) and remove_entry(problem.path)
