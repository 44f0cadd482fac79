"""Find what is damaged in a store, and mend it. Needs no model.

catalog     missing, damaged as a whole, another store's, or older than the documents: rebuilt from
            their manifests; rows of a document that are damaged: taken from its manifest; what it
            says of the store itself: taken from store.json or its copy
documents   a manifest that is damaged or missing, or says another text: written from the catalog;
            of a document that the catalog doesn't know: taken up, but where another model's store
            has made it: put aside; a delete that was cut short is finished
index       not what the catalog says, or finds other chunks: put aside, and made of the catalog's
            vectors
kv          damaged or foreign records: removed; the next ingest computes what is missing
corrections damaged ones: removed; the next ingest measures them anew
calibration damaged: put aside; `fusionrag calibrate` measures it anew

What is damaged and was the only copy of something is put aside under the name *.damaged. A link, a
pipe or an empty directory in the place of a file is removed; one that holds something stays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Literal

from filelock import Timeout

from fusionrag_integrations.calibration import (
    CALIBRATION_FILE,
    read_break_even,
    read_calibration,
)
from fusionrag_integrations.catalog import (
    BATCH,
    CATALOG_FILE,
    UNFINISHED_FILE,
    Catalog,
    StoreInfo,
)
from fusionrag_integrations.corpus import (
    INDEX_DIRECTORY,
    KV_DIRECTORY,
    LOCK_FILE,
    check_documents,
    check_nothing_lost,
    manifest_of,
    open_catalog,
)
from fusionrag_integrations.corrections import Corrections
from fusionrag_integrations.durable import locked, remove_file
from fusionrag_integrations.errors import (
    CatalogRowError,
    InvalidInputError,
    KVCorruptError,
    KVForeignError,
    StoreError,
    StoreNotFoundError,
)
from fusionrag_integrations.index import ChunkIndex
from fusionrag_integrations.index_check import index_faults
from fusionrag_integrations.keys import fused_key
from fusionrag_integrations.manifests import Manifest, Manifests, aside_of
from fusionrag_integrations.records import RecordFiles, is_key, verify
from fusionrag_integrations.types import ChunkRecord, DocumentKey

Area = Literal["catalog", "documents", "index", "kv", "corrections", "calibration"]
Told = Callable[[int, int], object]
"""Called with records done and records in all."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with a store. mended: whether it has been put right."""

    area: Area
    path: Path
    error: str
    message: str
    mended: bool = False


def find_damage(store: Path, told: Told = lambda done, total: None) -> Iterator[Problem]:
    """Everything that is damaged or missing in a store; changes nothing.

    Raises `StoreNotFoundError` where there is no store.
    """
    store = store.resolve()
    manifests = _manifests(store)
    try:
        catalog = _checked(store)
    except StoreError as error:
        yield _problem("catalog", store / CATALOG_FILE, error)
        yield from (_problem("documents", path, error) for path, error in _unreadable(manifests))
        return
    with closing(catalog):
        yield from (found.problem for found in _row_problems(store, manifests, catalog))
        yield from _document_problems(store, manifests, catalog)
        yield from _index_problems(store, catalog)
        yield from _record_problems(store, catalog, told)
        yield from _correction_problems(store, catalog)
        yield from _calibration_problems(store, catalog)
        yield from _note_problems(store, manifests, catalog)


def repair(store: Path, told: Told = lambda done, total: None) -> Iterator[Problem]:
    """Mend what `find_damage` finds; yields it as it is done. What is intact stays as it is.

    Raises `StoreNotFoundError`, and `StoreError` while the store is being changed, or where neither
    the catalog nor `store.json` says what it was made with.
    """
    store = store.resolve()
    manifests = _manifests(store)
    try:
        lock = locked(store / LOCK_FILE)
    except Timeout as error:
        raise StoreError(f"The store at {store} is being changed; wait for it to end.") from error
    except OSError as error:
        raise StoreError(f"The store at {store} can't be written: {error}.") from error
    with lock:
        try:
            catalog = _checked(store)
        except StoreError as error:
            if not _restored(store, manifests):
                _rebuild(store, manifests)
            yield _problem("catalog", store / CATALOG_FILE, error, mended=True)
            catalog = _checked(store)
        with closing(catalog):
            for problem in list(_note_problems(store, manifests, catalog)):
                mended = _removed(problem.path)
                if mended and problem.path == manifests.revision_path:
                    manifests.note_revision(catalog.revision, catalog.info.store_id)
                yield replace(problem, mended=mended)
            manifests.note_info(catalog.info)
            catalog.delete_documents(manifests.deleted(catalog.documents()))
            manifests.finish_deletes()
            damaged = list(_row_problems(store, manifests, catalog))
            left = _mend_rows(damaged, manifests, catalog)
            yield from (replace(f.problem, mended=f.document not in left) for f in damaged)
            problems = list(_document_problems(store, manifests, catalog))
            written = [_mend_document(p.path, manifests, catalog) for p in problems]
            signature = catalog.info.record_signature
            _take_up(manifests.unknown(catalog.documents(), signature), catalog)
            for problem, mended in zip(problems, written, strict=True):
                yield replace(problem, mended=mended)
            for problem in _index_problems(store, catalog):
                _rebuild_index(problem.path, catalog)
                yield replace(problem, mended=True)
            records = _records(store, catalog)
            for problem in _record_problems(store, catalog, told):
                yield replace(problem, mended=_mend_record(records, problem))
            records.sweep()
            for problem in list(_correction_problems(store, catalog)):
                yield replace(problem, mended=_removed(problem.path))
            for problem in list(_calibration_problems(store, catalog)):
                _put_aside(problem.path)
                yield replace(problem, mended=True)


def _manifests(store: Path) -> Manifests:
    manifests = Manifests(store)
    if not (store / CATALOG_FILE).exists() and not manifests.any():
        check_nothing_lost(store)
        raise StoreNotFoundError(f"There is no store at {store}.")
    return manifests


def _checked(store: Path) -> Catalog:
    """The catalog. Raises `StoreError` where it is damaged as a whole, or too old."""
    catalog = open_catalog(store)
    try:
        catalog.check()
    except BaseException:
        catalog.close()
        raise
    return catalog


def _records(store: Path, catalog: Catalog) -> RecordFiles:
    return RecordFiles(store / KV_DIRECTORY, catalog.info.record_signature)


def _unreadable(manifests: Manifests) -> Iterator[tuple[Path, StoreError]]:
    for path in manifests.paths():
        try:
            manifests.read(path)
        except StoreError as error:
            yield path, error


@dataclass(frozen=True, slots=True)
class _DamagedRow:
    """document: whose rows they are; None where it is one captured text's."""

    problem: Problem
    chunk_id: str
    document: DocumentKey | None


def _row_problems(store: Path, manifests: Manifests, catalog: Catalog) -> Iterator[_DamagedRow]:
    """Rows of the catalog that are damaged, or aren't what a document's manifest says."""
    path = store / CATALOG_FILE
    damaged: set[DocumentKey | None] = set()
    for chunk_id, document, message in catalog.damage():
        damaged.add(document)
        problem = _problem("catalog", path, CatalogRowError(message))
        yield _DamagedRow(problem, chunk_id, document)
    for chunk_id, document in catalog.without_vectors().items():
        if document not in damaged:
            damaged.add(document)
            message = f"Chunks of document {document.id!r} in {path} have lost their vectors."
            yield _DamagedRow(
                _problem("catalog", path, CatalogRowError(message)), chunk_id, document
            )
    for key in catalog.documents():
        if key in damaged:
            continue
        try:
            said = manifests.read(manifests.path_of(key), catalog.info.record_signature)
        except StoreError:
            continue  # named when the documents are checked
        known = manifest_of(catalog, key)
        # Another hash is that of a replacement which was cut short, or named with the documents.
        if said.content_hash == known.content_hash and not said.says(known):
            message = f"The chunks of document {key.id!r} in {path} aren't those of its manifest."
            yield _DamagedRow(_problem("catalog", path, CatalogRowError(message)), "", key)


def _document_problems(store: Path, manifests: Manifests, catalog: Catalog) -> Iterator[Problem]:
    for path, read in manifests.infos():
        try:
            if read() != catalog.info:
                raise StoreError(f"{path} doesn't say what the catalog says.")
        except StoreError as error:
            yield _problem("documents", path, error)
    unreadable: set[Path] = set()
    for path in manifests.paths():
        try:
            said = manifests.read(path, catalog.info.record_signature)
        except StoreError as error:
            unreadable.add(path)
            yield _problem("documents", path, error)
            continue
        known_as = catalog.document_hash(said.document)
        # While the store is changed, and where that was cut short, a file is ahead of the catalog.
        if known_as not in (None, said.content_hash) and not (store / UNFINISHED_FILE).exists():
            differs = StoreError(f"{path} is of another text than the catalog's.")
            yield _problem("documents", path, differs)
    known = {manifests.path_of(key) for key in catalog.documents()}
    known -= {manifests.path_of(key) for key in manifests.deleted(catalog.documents())}
    present = set(manifests.paths())
    for path in sorted(known - present):
        yield _problem("documents", path, StoreError(f"{path} is missing."))
    for path in sorted(present - known - unreadable):
        yield _problem("documents", path, StoreError(f"{path} is of no document."))


def _index_problems(store: Path, catalog: Catalog) -> Iterator[Problem]:
    """One problem, of all that is wrong with the index: it is made anew as a whole."""
    path = store / INDEX_DIRECTORY
    if not catalog.counts().chunks and not path.exists():
        return  # made by the next ingest
    found = index_faults(catalog, path) if path.exists() else ["it is missing"]
    if found:
        yield _problem(
            "index", path, StoreError(f"The index in {path} is damaged: {'; '.join(found)}")
        )


def _record_problems(store: Path, catalog: Catalog, told: Told) -> Iterator[Problem]:
    records = _records(store, catalog)
    keys = set(records.keys())
    named: set[Path] = set()
    for problem in verify(records, told):
        named.add(problem.path)
        yield _problem("kv", problem.path, problem.error)
    # What was captured may have been evicted since, and is no loss.
    for key in sorted(filter(is_key, catalog.live_keys() - set(catalog.captured_keys()) - keys)):
        path = records.path_of(key)
        if path not in named:
            yield Problem("kv", path, "KVMissingError", f"There is no KV record {path}.")


def _correction_problems(store: Path, catalog: Catalog) -> Iterator[Problem]:
    for path, error in Corrections(store, catalog).damaged():
        yield _problem("corrections", path, error)


def _calibration_problems(store: Path, catalog: Catalog) -> Iterator[Problem]:
    path = store / CALIBRATION_FILE
    try:
        read_calibration(path, catalog.info.signature)
        read_break_even(path, catalog.info.signature, "")
    except InvalidInputError as error:
        yield _problem("calibration", path, error)


def _note_problems(store: Path, manifests: Manifests, catalog: Catalog) -> Iterator[Problem]:
    """Notes that would stand in the way of the next change."""
    path = store / UNFINISHED_FILE
    if path.is_symlink() or (path.exists() and not path.is_file()):
        yield _problem("catalog", path, StoreError(f"{path} isn't a regular file."))
    try:
        noted = manifests.check_noted()
        if noted and noted.store_id != catalog.info.store_id:
            raise StoreError(f"{manifests.revision_path} doesn't say what the catalog says.")
    except StoreError as error:
        yield _problem("documents", manifests.revision_path, error)


def _problem(area: Area, path: Path, error: Exception, mended: bool = False) -> Problem:
    return Problem(area, path, type(error).__name__, str(error), mended)


def _next_revision(store: Path, manifests: Manifests) -> int:
    """Above that of any copy of the catalog, so that none passes for the newest.

    Where nothing says how far it had come, no count of changes is as high as the clock's seconds.
    """
    noted = manifests.noted()
    known = (noted.revision if noted else 0, Catalog.last_revision(store / CATALOG_FILE))
    return max(*known, int(time.time())) + 1


def _restored(store: Path, manifests: Manifests) -> bool:
    """Put right what the catalog says of the store itself; whether the rest of it is as it was."""
    try:
        open_catalog(store).close()
        return False
    except CatalogRowError:
        revision = _next_revision(store, manifests)
    except StoreError:
        return False
    path = store / CATALOG_FILE
    with suppress(StoreError):
        for info in manifests.readable_infos():
            if Catalog.restore_info(path, info, revision):
                manifests.note_revision(revision, info.store_id)
                _checked(store).close()
                return True
    return False


def _rebuild(store: Path, manifests: Manifests) -> None:
    """Make the catalog anew from all manifests that can be read."""
    check_documents(store)
    known: list[StoreInfo] = []
    with suppress(StoreError), Catalog.open(store / CATALOG_FILE) as catalog:
        known.append(catalog.info)
    info = manifests.info_of_documents(known)
    for path, read in manifests.infos():
        try:
            says_it = read() == info
        except StoreError:
            says_it = False
        if not says_it:
            _removed(path)
    manifests.note_info(info)
    draft = store / f"{CATALOG_FILE}.new"
    remove_file(draft)
    with Catalog.create(draft, info, _next_revision(store, manifests)) as catalog:
        _take_up(manifests.unknown([], info.record_signature), catalog)
        revision = catalog.revision
    # The old file's journal would be taken for the new one's.
    remove_file(store / f"{CATALOG_FILE}-journal")
    if os.path.lexists(store / CATALOG_FILE):
        _put_aside(store / CATALOG_FILE)
    draft.replace(store / CATALOG_FILE)
    manifests.note_revision(revision, info.store_id)


def _rebuild_index(path: Path, catalog: Catalog) -> None:
    """Make the index of the catalog's vectors; chunks without one wait for the next ingest."""
    if path.exists():
        _put_aside(path)
    with closing(ChunkIndex(path)) as index:
        ids = catalog.chunk_ids()
        for start in range(0, len(ids), BATCH):
            vectors = catalog.vectors(ids[start : start + BATCH])
            chunks = [record.chunk for record in catalog.readable(vectors).values()]
            index.add(chunks, [vectors[chunk.id] for chunk in chunks])
    catalog.raise_revision()


def _take_up(found: Sequence[Manifest], catalog: Catalog) -> None:
    """Put documents into the catalog, then their links: some are to one another."""
    for manifest in found:
        catalog.replace_document(
            manifest.document, manifest.content_hash, manifest.records, manifest.vectors
        )
    for manifest in found:
        for record, neighbours in zip(manifest.records, manifest.neighbours, strict=True):
            if _is_true(record, neighbours, catalog):
                catalog.set_fused(record.chunk.id, record.fused_key, neighbours, record.trace)


def _is_true(record: ChunkRecord, neighbours: tuple[str, ...], catalog: Catalog) -> bool:
    """Whether a fused key is that of these neighbours as they are now."""
    found = catalog.readable(neighbours)
    if not neighbours or len(found) < len(neighbours):
        return False
    keys = [found[neighbour].isolated_key for neighbour in neighbours]
    return record.fused_key == fused_key(record.isolated_key, keys)


def _mend_rows(
    damaged: Sequence[_DamagedRow], manifests: Manifests, catalog: Catalog
) -> set[DocumentKey]:
    """Put manifests in the place of documents' rows; returns those that this can't make whole.

    A captured text is no loss.
    """
    catalog.forget_texts([found.chunk_id for found in damaged if found.document is None])
    whole: list[Manifest] = []
    left: set[DocumentKey] = set()
    for document in dict.fromkeys(found.document for found in damaged):
        if document is None:
            continue
        try:
            path = manifests.path_of(document)
            whole.append(manifests.read(path, catalog.info.record_signature))
        except StoreError:
            catalog.mark_changed(document)
            left.add(document)
    _take_up(whole, catalog)
    return left | set(catalog.without_vectors().values())


def _mend_document(path: Path, manifests: Manifests, catalog: Catalog) -> bool:
    if path in dict(manifests.infos()):
        if not _removed(path):
            return False
        manifests.note_info(catalog.info)
        return True
    for key in catalog.documents():
        if manifests.path_of(key) == path:
            with suppress(CatalogRowError):  # named as one of the catalog
                manifest = manifest_of(catalog, key)
                if not _made_room(path, manifests):
                    return False
                manifests.write(manifest)
            return True
    try:
        manifests.read(path, catalog.info.record_signature)
    except StoreError:
        _put_aside(path)
    return True


def _made_room(path: Path, manifests: Manifests) -> bool:
    """Make room for what the catalog says; another text may be the only copy of it."""
    try:
        manifests.read(path)
    except StoreError:
        return _removed(path)
    _put_aside(path)
    return True


def _mend_record(records: RecordFiles, problem: Problem) -> bool:
    """Remove a record that can't be used; strangers among the files are nobody's to remove."""
    unusable = problem.error in (KVCorruptError.__name__, KVForeignError.__name__)
    return unusable and records.is_record(problem.path) and _removed(problem.path)


def _removed(path: Path) -> bool:
    """Remove what stands in a file's place, but no directory that holds something."""
    try:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            remove_file(path)
    except OSError:
        return False
    return True


def _put_aside(path: Path) -> None:
    """Rename what is damaged, in the place of what was put aside before."""
    aside = aside_of(path)
    if aside.is_dir():
        rmtree(aside)
    path.replace(aside)
