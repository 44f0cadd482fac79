"""Whether a store's index is what its catalog says, and finds what it should.

Damaged HNSW files make Chroma's native code crash, hang, or find other chunks. So the index is
read in a process of its own, and what becomes of that process is a finding too.
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

from fusionrag_integrations.catalog import BATCH, UNFINISHED_FILE, Catalog
from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.exact_search import ExactSearch
from fusionrag_integrations.index import DATABASE_FILE, ChunkIndex, shown_metadata, unit_rows

_SECONDS = 120.0  # for a process that only starts and opens both
_SECONDS_A_CHUNK = 0.1  # a search takes about a hundredth of it
_NEAREST = 10
_QUESTIONS = 500  # whose nearest chunks are all compared with the true ones
# The graph is approximate: an intact one finds nearly all true neighbours, and may take one chunk
# for another that is as near but for this much.
_SCORE = 1e-3
_FOUND = 0.95
_COMPONENT = 1e-5  # of vectors of length 1: float32's rounding is a hundredth of it


def index_faults(catalog: Catalog, index: Path) -> list[str]:
    """What is wrong with the index in a directory, in words; nothing is changed.

    Raises `StoreError` where no process can be started.
    """
    limit = _SECONDS + _SECONDS_A_CHUNK * catalog.counts().chunks
    command = [sys.executable, "-m", __name__, str(catalog.path), str(index)]
    ours = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
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
        said = run.stderr.strip().splitlines()[-1:] or [f"exit status {run.returncode}"]
        return [f"reading it crashes the process that does ({said[0]})"]
    found: list[str] = json.loads(run.stdout.splitlines()[-1])
    return found


def faults(catalog: Catalog, directory: Path) -> Iterator[str]:
    """What is wrong with an index. May crash or hang where its files are damaged."""
    if damaged := _database_fault(directory / DATABASE_FILE):
        yield damaged
        return  # opening it might change it
    try:
        yield from _faults_inside(catalog, directory)
    except StoreError as error:
        yield str(error)


def _faults_inside(catalog: Catalog, directory: Path) -> Iterator[str]:
    before = set(catalog.chunk_ids())
    with closing(ChunkIndex(directory)) as index:
        indexed = index.ids()
        # Another process may be changing both; what is in the catalog all the time is indexed.
        known = set(catalog.chunk_ids())
        if lost := (before & known) - indexed:
            yield f"{len(lost)} chunks are missing, such as {min(lost)!r}"
        # Chunks are put into the index first, and taken from it last.
        if (strange := indexed - known - before) and not (
            directory.parent / UNFINISHED_FILE
        ).exists():
            yield f"it holds {len(strange)} chunks that the catalog doesn't know"
        ids = sorted(before & known & indexed)
        if not _same_entries(catalog, index, ids):
            yield "the vectors or the metadata of chunks aren't those of the catalog"
        else:
            # Also where nobody searches the graph: one that makes searches crash, crashes ingests.
            missed = list(_search_faults(catalog, index, ids))
            if not ExactSearch(index, catalog).is_exact:
                yield from missed


def _database_fault(path: Path) -> str | None:
    """Why Chroma's database can't be relied on; None where it can."""
    if not path.exists() or not path.stat().st_size:
        return f"{path.name} is missing or empty"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            found = [row[0] for row in db.execute("PRAGMA integrity_check")]
    except sqlite3.Error as error:
        found = [str(error)]
    return None if found == ["ok"] else f"{path.name} is damaged ({'; '.join(found)})"


def _same_entries(catalog: Catalog, index: ChunkIndex, ids: Sequence[str]) -> bool:
    """Whether the index holds the catalog's vectors, but for their lengths, and its metadata."""
    for batch in _batches(ids):
        vectors, entries = _unit(catalog, batch), index.entries(batch)
        records = catalog.readable(batch)  # damage to the others is the catalog's
        for chunk_id, vector in vectors.items():
            stored, metadata = entries[chunk_id]
            if chunk_id in records and metadata != shown_metadata(records[chunk_id].chunk):
                return False
            found = unit_rows([stored])[0]
            if found.shape != vector.shape or not np.allclose(found, vector, 0.0, _COMPONENT):
                return False
    return True


def _search_faults(catalog: Catalog, index: ChunkIndex, ids: Sequence[str]) -> Iterator[str]:
    """Chunks that aren't found by their own vectors; questions that find what isn't nearest."""
    asked = ids[:: max(1, len(ids) // _QUESTIONS)]
    questions = _unit(catalog, asked)
    best = np.full((len(questions), 0), -1.0, np.float32)
    matrix = np.array(list(questions.values()), np.float32)
    found: dict[str, list[float]] = {}
    unseen: list[str] = []
    for batch in _batches(ids):
        vectors = _unit(catalog, batch)
        for chunk_id, vector in vectors.items():
            hits = index.search(vector.tolist(), _NEAREST)
            if not _finds(hits, chunk_id, vector, catalog):
                unseen.append(chunk_id)
            if chunk_id in questions:
                found[chunk_id] = [score for _, score in hits]
        if vectors and len(questions):
            scores = matrix @ np.array(list(vectors.values()), np.float32).T
            best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :_NEAREST]
    if unseen:
        yield f"{len(unseen)} chunks aren't found by their own vectors, such as {min(unseen)!r}"
    right = total = 0
    for chunk_id, true in zip(questions, best, strict=True):
        got = [*found[chunk_id], *[-np.inf] * _NEAREST][: len(true)]
        right += int(np.sum(np.array(got) >= true - _SCORE))
        total += len(true)
    if right < _FOUND * total:
        yield f"searches find {right} of the {total} chunks that are nearest"


def _finds(
    hits: Sequence[tuple[str, float]], chunk_id: str, vector: np.ndarray, catalog: Catalog
) -> bool:
    """Whether a chunk's own vector found it, or nothing but others that are as near."""
    if not np.any(vector):  # all are as near to zeros
        return True
    if chunk_id in dict(hits):
        return dict(hits)[chunk_id] >= 1.0 - _SCORE
    true = _unit(catalog, [other for other, _ in hits])
    return bool(hits) and all(
        other in true and true[other] @ vector >= 1.0 - _SCORE for other, _ in hits
    )


def _unit(catalog: Catalog, ids: Sequence[str]) -> dict[str, np.ndarray]:
    vectors = {i: vector for i, vector in catalog.vectors(ids).items() if vector}
    return dict(zip(vectors, unit_rows(list(vectors.values())), strict=True)) if vectors else {}


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + BATCH] for start in range(0, len(ids), BATCH))


if __name__ == "__main__":
    with Catalog.open(sys.argv[1]) as opened:
        listed = list(faults(opened, Path(sys.argv[2])))
    sys.stdout.write(json.dumps(listed))
