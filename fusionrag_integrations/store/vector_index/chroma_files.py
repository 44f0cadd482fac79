"""The directory of an index: whether it can be written, and temporary copies of it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

from fusionrag_integrations.errors import StoreError

_ROOM = 8 << 20  # free bytes without which nothing is written: on a full disk Chroma may hang
_GROWTH = 8  # bytes on disk per byte of text or vector, with search tables and journals


def check_no_links(directory: Path) -> None:
    """Raises `StoreError` where a directory is a symbolic link, or has one anywhere in it."""
    for path in (directory, *directory.rglob("*")):
        if path.is_symlink():
            raise StoreError(
                f"{path} is a symbolic link, which is not followed. Put the index itself "
                "there, or delete the link: `fusionrag index` embeds the chunks again."
            )


def is_writable(directory: Path) -> bool:
    """Whether a directory can be written; true also of a missing one, which is created later."""
    if not directory.is_dir():
        return True
    effective = os.access in os.supports_effective_ids
    allowed = os.access(directory, os.W_OK, effective_ids=effective)
    return allowed and shutil.disk_usage(directory).free >= _ROOM


def check_room(directory: Path, nbytes: int) -> None:
    """Raises `OSError` where there is no room to write nbytes of texts and vectors."""
    needed = _ROOM + _GROWTH * nbytes
    if (free := shutil.disk_usage(directory).free) < needed:
        reason = f"{os.strerror(errno.ENOSPC)}: {free:,} bytes of {needed:,} are free"
        raise OSError(errno.ENOSPC, reason)


def temporary_copy(directory: Path) -> Path:
    """A writable copy, in the system's temporary directory. Raises `OSError`."""
    copy = Path(mkdtemp(prefix="fusionrag-index-"))
    try:
        for file in directory.rglob("*"):
            if file.is_file():
                target = copy / file.relative_to(directory)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    except BaseException:
        remove_copy(copy)
        raise
    return copy


def remove_copy(copy: Path | None) -> None:
    """Remove a temporary copy, if there is one, as far as possible."""
    if copy is not None:
        shutil.rmtree(copy, ignore_errors=True)
