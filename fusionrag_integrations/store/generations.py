"""A directory whose store was made anew for another model: which of its stores is the one now.

moved.json            names the directory of the store that is opened from now on, and since when
generations/<name>/   a store, with all its files

Whoever had the one before open goes on with it, for its files stay where they are until they are
collected.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.store import layout
from fusionrag_integrations.store.locking import holding
from fusionrag_integrations.support.atomic_files import read_file, write_file

_NOTE = "moved.json"
_DIRECTORY = "generations"
_MOST = 1 << 16  # bytes of a note
_OF_A_STORE = (
    *(layout.INFO_FILE, layout.CATALOG_FILE, layout.DOCUMENTS_DIRECTORY, layout.INDEX_DIRECTORY),
    *(layout.KV_DIRECTORY, layout.CORRECTIONS_DIRECTORY, layout.CALIBRATION_FILE),
    *(layout.LOCK_FILE, layout.UNFINISHED_FILE),
)


@dataclass(frozen=True, slots=True)
class Move:
    """Which generation is opened since when, in seconds since the epoch."""

    to: str
    when: float


def directory_of(path: str | Path) -> Path:
    """The directory of the store that is opened at a path, with links followed.

    Raises `StoreError` where it isn't known.
    """
    root = Path(path).resolve()
    move = _move(root)
    return root if move is None else root / _DIRECTORY / move.to


def next_directory(path: Path, name: str) -> Path:
    """Where a new generation of the store at a path is made. name: such as its signature."""
    return path.resolve() / _DIRECTORY / name


def move_to(path: Path, name: str) -> None:
    """Let a generation be what is opened at a path. Raises `StoreError`."""
    root = path.resolve()
    note = json.dumps({"to": name, "when": time.time()}).encode()
    try:
        write_file(root / _NOTE, [note], root / _DIRECTORY)
    except OSError as error:
        raise StoreError(f"The store at {root} can't be moved: {error}.") from error


def collect_generations(path: Path, grace: float) -> list[Path]:
    """Delete the stores that were there before the one now; returns what was deleted.

    grace: nothing is deleted within so many seconds of the move. Raises `StoreBusyError` while the
    store is being changed, or made anew, and `StoreError`.
    """
    root = path.resolve()
    move = _move(root)
    if move is None or time.time() - move.when < grace:
        return []
    with holding(root / _DIRECTORY / move.to):  # as does what makes the next generation
        old = list(_before(root, move))
        try:
            for entry in old:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        except OSError as error:
            raise StoreError(f"{entry} can't be deleted: {error}.") from error
    return old


def _before(root: Path, move: Move) -> Iterator[Path]:
    names = (root / name for name in _OF_A_STORE)
    yield from (path for path in names if path.exists() or path.is_symlink())
    for generation in sorted((root / _DIRECTORY).iterdir()):
        if generation.name != move.to:
            yield generation


def _move(root: Path) -> Move | None:
    note = root / _NOTE
    if not note.exists() and not note.is_symlink():
        return None
    try:
        found = json.loads(read_file(note, _MOST))
        move = Move(str(found["to"]), float(found["when"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{note} is damaged, which says where the store is: {error!r}") from error
    if not (root / _DIRECTORY / move.to).is_dir():
        raise StoreError(f"{note} says that the store is in {move.to!r}, which isn't there.")
    return move
