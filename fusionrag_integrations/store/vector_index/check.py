"""Checks that a store's index matches its catalog, and finds the nearest chunks.

Damaged HNSW files make Chroma's native code crash, hang, or find other chunks. So the index is
read in a separate process, whose crash or timeout is a fault too.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.catalog.database import batches
from fusionrag_integrations.store.layout import UNFINISHED_FILE
from fusionrag_integrations.store.vector_index.chroma import DATABASE_FILE, ChromaIndex
from fusionrag_integrations.store.vector_index.exact import ExactSearch
from fusionrag_integrations.store.vector_index.filters import filterable_metadata
from fusionrag_integrations.store.vector_index.vectors import unit_rows

_PACKAGE_PARENT = Path(__file__).parents[3]
_SECONDS = 120.0  # for the process to start and open catalog and index
_SECONDS_PER_CHUNK = 0.1  # a search takes about a hundredth of this
_NEAREST = 10  # hits per search
_QUESTIONS = 500  # chunks whose hits are all compared with the true nearest
# Chroma's graph is approximate: an intact one finds nearly all true neighbours, or others whose
# scores differ by less than this.
_SCORE = 1e-3
_FOUND = 0.95  # share of the true neighbours
_COMPONENT = 1e-5  # of vectors of length 1: a hundred times float32's rounding


def index_faults(catalog: Catalog, index: Path) -> list[str]:
    """What is wrong with the index in a directory, one phrase each. Changes nothing.

    Raises `StoreError` where no process can be started.
    """
    limit = _SECONDS + _SECONDS_PER_CHUNK * catalog.counts().chunks
    command = [sys.executable, "-m", __name__, str(catalog.path), str(index)]
    paths = os.pathsep.join(filter(None, (str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH"))))
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            env=os.environ | {"PYTHONPATH": paths},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [f"searching it doesn't end within {limit:.0f} s"]
    except OSError as error:
        raise StoreError(f"The index in {index} can't be checked: {error}.") from error
    if run.returncode:
        (reason,) = run.stderr.strip().splitlines()[-1:] or [f"exit status {run.returncode}"]
        return [f"reading it crashes the process that does ({reason})"]
    listed: list[str] = json.loads(run.stdout.splitlines()[-1])
    return listed


def faults(catalog: Catalog, directory: Path) -> Iterator[str]:
    """As `index_faults`, but in this process, which damaged files may crash or hang."""
    if fault := _database_fault(directory / DATABASE_FILE):
        yield fault
        return  # since opening it might change it
    try:
        yield from _content_faults(catalog, directory)
    except StoreError as error:
        yield str(error)


def _content_faults(catalog: Catalog, directory: Path) -> Iterator[str]:
    before = set(catalog.chunks.ids())
    with closing(ChromaIndex(directory)) as index:
        indexed = index.ids()
        # Another process may be changing both. What is in the catalog before and after must be
        # indexed; an interrupted ingest leaves more in the index, since it adds chunks there first.
        after = set(catalog.chunks.ids())
        if missing := (before & after) - indexed:
            yield f"{len(missing)} chunks are missing, such as {min(missing)!r}"
        unfinished = (directory.parent / UNFINISHED_FILE).exists()
        if (unknown := indexed - before - after) and not unfinished:
            yield f"it holds {len(unknown)} chunks that the catalog doesn't know"
        ids = sorted(before & after & indexed)
        if not _same_entries(catalog, index, ids):
            yield "the vectors or the metadata of chunks aren't those of the catalog"
        else:
            # Search the graph in any case, since one that crashes searches crashes ingests; what
            # it finds matters only where the store is searched by it.
            found = list(_search_faults(catalog, index, ids))
            if not ExactSearch(index, catalog).is_exact:
                yield from found


def _database_fault(path: Path) -> str | None:
    """What is wrong with Chroma's database; None where it is intact."""
    if not path.exists() or not path.stat().st_size:
        return f"{path.name} is missing or empty"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            found = [row[0] for row in db.execute("PRAGMA integrity_check")]
    except sqlite3.Error as error:
        found = [str(error)]
    return None if found == ["ok"] else f"{path.name} is damaged ({'; '.join(found)})"


def _same_entries(catalog: Catalog, index: ChromaIndex, ids: Sequence[str]) -> bool:
    """Whether the index has the catalog's metadata, and its vectors scaled to any length."""
    for batch in batches(ids):
        vectors, entries = _unit_vectors(catalog, batch), index.entries(batch)
        records = catalog.chunks.readable(batch)  # damaged rows are the catalog's problem
        for chunk_id, vector in vectors.items():
            stored, metadata = entries[chunk_id]
            if chunk_id in records and metadata != filterable_metadata(records[chunk_id].chunk):
                return False
            indexed = unit_rows([stored])[0]
            if indexed.shape != vector.shape or not np.allclose(indexed, vector, 0.0, _COMPONENT):
                return False
    return True


def _search_faults(catalog: Catalog, index: ChromaIndex, ids: Sequence[str]) -> Iterator[str]:
    """Chunks not found by their own vectors, and searches that miss the nearest chunks."""
    questions = _unit_vectors(catalog, ids[:: max(1, len(ids) // _QUESTIONS)])
    matrix = np.array(list(questions.values()), np.float32)
    nearest = np.full((len(questions), 0), -1.0, np.float32)  # true scores [questions, <= _NEAREST]
    found: dict[str, list[float]] = {}  # the scores of a question's hits
    lost: list[str] = []
    for batch in batches(ids):
        vectors = _unit_vectors(catalog, batch)
        for chunk_id, vector in vectors.items():
            hits = index.search(vector.tolist(), _NEAREST)
            if not _finds(hits, chunk_id, vector, catalog):
                lost.append(chunk_id)
            if chunk_id in questions:
                found[chunk_id] = [score for _, score in hits]
        if vectors and len(questions):
            scores = matrix @ np.array(list(vectors.values()), np.float32).T
            nearest = -np.sort(-np.concatenate([nearest, scores], axis=1), axis=1)[:, :_NEAREST]
    if lost:
        yield f"{len(lost)} chunks aren't found by their own vectors, such as {min(lost)!r}"
    right = 0
    for chunk_id, true in zip(questions, nearest, strict=True):
        scored = [*found[chunk_id], *[-np.inf] * _NEAREST][: len(true)]
        right += int(np.sum(np.array(scored) >= true - _SCORE))
    if right < _FOUND * nearest.size:
        yield f"searches find {right} of the {nearest.size} chunks that are nearest"


def _finds(
    hits: Sequence[tuple[str, float]], chunk_id: str, vector: np.ndarray, catalog: Catalog
) -> bool:
    """Whether the hits of a chunk's own vector include it, or are all equal to it."""
    if not np.any(vector):  # all chunks are equally near to zeros
        return True
    if chunk_id in dict(hits):
        return dict(hits)[chunk_id] >= 1.0 - _SCORE
    true = _unit_vectors(catalog, [other for other, _ in hits])
    return bool(hits) and all(
        other in true and true[other] @ vector >= 1.0 - _SCORE for other, _ in hits
    )


def _unit_vectors(catalog: Catalog, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """The catalog's vectors of chunks, as float32 [dimensions] of length 1."""
    vectors = {i: vector for i, vector in catalog.vectors.of(ids).items() if vector}
    return dict(zip(vectors, unit_rows(list(vectors.values())), strict=True)) if vectors else {}


if __name__ == "__main__":
    with Catalog.open(sys.argv[1]) as opened:
        listed = list(faults(opened, Path(sys.argv[2])))
    sys.stdout.write(json.dumps(listed))
