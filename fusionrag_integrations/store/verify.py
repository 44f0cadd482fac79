"""Finds everything that is damaged or missing in a store. Needs no model, and changes nothing.

`repair.py` tells how each is fixed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import (
    CatalogRowError,
    InvalidInputError,
    KVMissingError,
    StoreError,
    StoreNotFoundError,
)
from fusionrag_integrations.store.calibration import read_break_even, read_calibration
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.changes import manifest_of
from fusionrag_integrations.store.corrections import Corrections
from fusionrag_integrations.store.generations import directory_of
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_format import is_key
from fusionrag_integrations.store.kv.verify import verify
from fusionrag_integrations.store.layout import (
    CALIBRATION_FILE,
    CATALOG_FILE,
    INDEX_DIRECTORY,
    KV_DIRECTORY,
    UNFINISHED_FILE,
)
from fusionrag_integrations.store.manifests import Manifests
from fusionrag_integrations.store.manifests.notes import read_info
from fusionrag_integrations.store.opening import check_nothing_lost, open_catalog
from fusionrag_integrations.store.vector_index.check import index_faults
from fusionrag_integrations.support.renamed import Renamed

logger = logging.getLogger(__name__)

Area = Literal["catalog", "documents", "index", "kv", "corrections", "calibration"]
Counted = Callable[[int, int], object]
"""Called with the records done and the total."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with a store. path: of a file; at a URL, the
    name of an object. fixed: whether `repair` has fixed it.
    """

    area: Area
    path: Path
    error: str
    message: str
    fixed: bool = False

    mended = Renamed("fixed")


def find_damage(store: Path, progress: Counted = lambda done, total: None) -> Iterator[Problem]:
    """Everything that is damaged or missing in a store; changes nothing.

    Raises `StoreNotFoundError` where there is no store.
    """
    store = directory_of(store)
    manifests = existing_manifests(store)
    try:
        catalog = checked_catalog(store)
    except StoreError as error:
        yield problem_of("catalog", store / CATALOG_FILE, error)
        yield from (problem_of("documents", path, error) for path, error in _unreadable(manifests))
        return
    with closing(catalog):
        yield from (found.problem for found in row_problems(store, manifests, catalog))
        yield from document_problems(store, manifests, catalog)
        yield from index_problems(store, catalog)
        yield from record_problems(store, catalog, progress)
        yield from correction_problems(store, catalog)
        yield from calibration_problems(store, catalog)
        yield from note_problems(store, manifests, catalog)


def existing_manifests(store: Path) -> Manifests:
    """The manifests of a store. Raises `StoreNotFoundError`, and `StoreError` where it lost all."""
    manifests = Manifests(store)
    if not (store / CATALOG_FILE).exists() and not manifests.exist():
        check_nothing_lost(store)
        raise StoreNotFoundError(f"There is no store at {store}.")
    return manifests


def checked_catalog(store: Path) -> Catalog:
    """Open and check the catalog. Raises `StoreError` where it must be rebuilt."""
    catalog = open_catalog(store)
    try:
        catalog.check()
    except BaseException:
        catalog.close()
        raise
    return catalog


def _unreadable(manifests: Manifests) -> Iterator[tuple[Path, StoreError]]:
    for path in manifests.paths():
        try:
            manifests.read(path)
        except StoreError as error:
            yield path, error


@dataclass(frozen=True, slots=True)
class DamagedRow:
    """Damaged rows of a document, or of one ad-hoc chunk, whose document is None."""

    problem: Problem
    chunk_id: str
    document: DocumentKey | None


def row_problems(store: Path, manifests: Manifests, catalog: Catalog) -> Iterator[DamagedRow]:
    """Rows of the catalog that are damaged, or differ from the document's manifest."""
    path = store / CATALOG_FILE
    damaged: set[DocumentKey | None] = set()

    def damage(message: str, document: DocumentKey | None, chunk_id: str = "") -> DamagedRow:
        damaged.add(document)
        return DamagedRow(problem_of("catalog", path, CatalogRowError(message)), chunk_id, document)

    for chunk_id, document, message in catalog.damaged_chunks():
        yield damage(message, document, chunk_id)
    for document in catalog.vectors.missing().values():
        if document not in damaged:
            message = f"Chunks of document {document.id!r} in {path} have lost their vectors."
            yield damage(message, document)
    for key in catalog.documents.all():
        if key in damaged:
            continue
        try:
            manifest = manifests.read(manifests.path_of(key), catalog.info.record_signature)
        except StoreError:
            continue  # one of document_problems
        known = manifest_of(catalog, key)
        # Another hash is one of document_problems, or that of an interrupted replacement.
        if manifest.content_hash == known.content_hash and not manifest.has_chunks_of(known):
            message = f"The chunks of document {key.id!r} in {path} aren't those of its manifest."
            yield damage(message, key)


def document_problems(store: Path, manifests: Manifests, catalog: Catalog) -> Iterator[Problem]:
    """Manifests, and copies of store.json, that are damaged, missing or differ from the catalog."""
    for path in manifests.notes.info_paths():
        try:
            if read_info(path) != catalog.info:
                raise StoreError(f"{path} doesn't say what the catalog says.")
        except StoreError as error:
            yield problem_of("documents", path, error)
    unreadable: set[Path] = set()
    for path in manifests.paths():
        try:
            manifest = manifests.read(path, catalog.info.record_signature)
        except StoreError as error:
            unreadable.add(path)
            yield problem_of("documents", path, error)
            continue
        content = catalog.documents.content_hash(manifest.document)
        # During a change, and after an interrupted one, a manifest may be newer than the catalog.
        if content not in (None, manifest.content_hash) and not (store / UNFINISHED_FILE).exists():
            differs = StoreError(f"{path} is of another text than the catalog's.")
            yield problem_of("documents", path, differs)
    known = {manifests.path_of(key) for key in catalog.documents.all()}
    known -= {manifests.path_of(key) for key in manifests.deleted(catalog.documents.all())}
    present = set(manifests.paths())
    for path in sorted(known - present):
        yield problem_of("documents", path, StoreError(f"{path} is missing."))
    for path in sorted(present - known - unreadable):
        yield problem_of("documents", path, StoreError(f"{path} is of no document."))


def index_problems(store: Path, catalog: Catalog) -> Iterator[Problem]:
    """At most one problem, which names all that is wrong, since the index is rebuilt as a whole.

    One that isn't in the store's directory isn't checked: whoever opens the store with it fills it.
    """
    path = store / INDEX_DIRECTORY
    if place := Manifests(store).notes.index_place():
        logger.warning("The index of the store at %s isn't checked: it is %s.", store, place)
        return
    if not catalog.counts().chunks and not path.exists():
        return  # the next ingest creates it
    found = index_faults(catalog, path) if path.exists() else ["it is missing"]
    if found:
        yield problem_of(
            "index", path, StoreError(f"The index in {path} is damaged: {'; '.join(found)}")
        )


def record_problems(store: Path, catalog: Catalog, progress: Counted) -> Iterator[Problem]:
    """KV records that are damaged or missing."""
    files = LocalKVFiles(store / KV_DIRECTORY)
    keys = {entry.key for entry in files.entries()}
    named: set[Path] = set()
    for problem in verify(files, catalog.info.record_signature, progress):
        named.add(problem.path)
        yield problem_of("kv", problem.path, problem.error)
    if catalog.info.kv == "none":
        return
    # Records of ad-hoc chunks may have been evicted.
    for key in sorted(filter(is_key, catalog.kv.live_keys() - set(catalog.adhoc.kv_keys()) - keys)):
        path = files.path_of(key)
        if path not in named:
            yield problem_of("kv", path, KVMissingError(f"There is no KV record {path}."))


def correction_problems(store: Path, catalog: Catalog) -> Iterator[Problem]:
    for path, error in Corrections(store, catalog).damaged():
        yield problem_of("corrections", path, error)


def calibration_problems(store: Path, catalog: Catalog) -> Iterator[Problem]:
    path = store / CALIBRATION_FILE
    try:
        read_calibration(path, catalog.info.signature)
        read_break_even(path, catalog.info.signature, "")
    except InvalidInputError as error:
        yield problem_of("calibration", path, error)


def note_problems(store: Path, manifests: Manifests, catalog: Catalog) -> Iterator[Problem]:
    """Files about the store itself that would keep it from being changed."""
    path = store / UNFINISHED_FILE
    if path.is_symlink() or (path.exists() and not path.is_file()):
        yield problem_of("catalog", path, StoreError(f"{path} isn't a regular file."))
    try:
        noted = manifests.notes.check_revision()
        if noted and noted.store_id != catalog.info.store_id:
            raise StoreError(f"{manifests.notes.revision_path} doesn't say what the catalog says.")
    except StoreError as error:
        yield problem_of("documents", manifests.notes.revision_path, error)
    try:
        manifests.notes.check_index_place()
    except StoreError as error:
        yield problem_of("index", manifests.notes.index_path, error)


def problem_of(area: Area, path: Path, error: Exception, fixed: bool = False) -> Problem:
    return Problem(area, path, type(error).__name__, str(error), fixed)
