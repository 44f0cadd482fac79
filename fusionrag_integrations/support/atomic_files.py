"""Atomic files: written whole or not at all, links not followed, a store's for its owner alone.

Every call that touches the disk ends in one of the `os` module, so that tests can make it fail or
crash there.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from fusionrag_integrations.errors import InvalidInputError

FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
STALE_SECONDS = 3600  # no write takes this long: an older draft's writer is dead

_STREAMS = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)  # else opening a pipe waits for its writer


def make_directory(path: Path) -> None:
    """Create a directory and its parents durably; nothing happens where it exists.

    Raises `OSError`, also for a link.
    """
    if path.is_symlink():
        raise NotADirectoryError(f"{path} is a symbolic link, which is not followed")
    if path.is_dir():
        return
    if path.parent != path and not path.parent.is_dir():
        make_directory(path.parent)
    with suppress(FileExistsError):  # another process was faster
        path.mkdir(DIRECTORY_MODE)
    sync_directory(path.parent)


def write_file(
    path: Path,
    parts: Iterable[bytes | memoryview],
    drafts: Path,
    *,
    sync: bool = True,
    mode: int = FILE_MODE,
) -> None:
    """Write a file atomically, replacing an existing one: readers see either the old or the new.

    drafts: a directory on the same file system, for the file until it is complete. sync: return
    once content and name are on the disk. mode: the file's permissions. Raises `OSError`.
    """
    with _draft(path, parts, drafts, sync, mode) as draft:
        draft.replace(path)
    if sync:
        sync_directory(path.parent)


def create_file(path: Path, content: bytes, drafts: Path) -> None:
    """Like `write_file`, where there is no such file. Raises `FileExistsError`, and `OSError`."""
    with _draft(path, [content], drafts, True, FILE_MODE) as draft:
        os.link(draft, path)
    sync_directory(path.parent)


@contextmanager
def _draft(
    path: Path, parts: Iterable[bytes | memoryview], drafts: Path, sync: bool, mode: int
) -> Iterator[Path]:
    """A complete file among the drafts, to be given the name `path`; removed at the end."""
    make_directory(drafts)
    make_directory(path.parent)
    draft = drafts / f"{path.name}.{uuid4().hex}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINKS
        descriptor = os.open(draft, flags, mode)
        try:
            for part in parts:
                _write_all(descriptor, part)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield draft
    finally:
        with suppress(OSError):  # gone after a rename, useless after a failure
            draft.unlink()


def check_output(path: Path) -> None:
    """Check that `write_output` can write to a user's path, before work is done for it.

    Raises `InvalidInputError` where its directory is missing or it isn't a regular file.
    """
    if str(path) in _STREAMS:
        return
    if not path.parent.is_dir():
        raise InvalidInputError(f"There is no directory {path.parent} to write {path.name} to.")
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidInputError(f"{path} can't be written: {error.strerror or error}.") from error
    if not stat.S_ISREG(found):
        kind = _KINDS.get(stat.S_IFMT(found), "a special file")
        raise InvalidInputError(
            f"{path} is {kind}, and is left as it is; give the path of a file, or a new one."
        )


def write_output(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file atomically to a user's path, replacing a regular file.

    A new file's mode follows the umask, or is for the owner alone if private; an existing file
    keeps its mode. `-`, `/dev/stdout` and `/dev/stderr` are the process's streams. Raises
    `InvalidInputError`.
    """
    check_output(path)
    stream = _STREAMS.get(str(path))
    try:
        if stream is not None:
            _write_all(stream, content)
            return
        place = path.parent.resolve() / path.name
        mode = FILE_MODE if private else 0o666
        kept = stat.S_IMODE(place.lstat().st_mode) if place.exists() else None
        write_file(place, [content], place.parent, mode=mode)
        if kept is not None and not private:
            place.chmod(kept)
    except OSError as error:
        raise InvalidInputError(f"{path} can't be written: {error.strerror or error}.") from error


@contextmanager
def open_file(path: Path) -> Iterator[int]:
    """The descriptor of a regular file, for reading. Raises `OSError`, also for anything else."""
    descriptor = open_descriptor(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_descriptor(path: Path) -> int:
    """Like `open_file`; the caller closes it."""
    _refuse_links(path.parent)
    descriptor = os.open(path, os.O_RDONLY | _NO_LINKS | _NO_WAITING)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EISDIR, "not a regular file", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read into the buffer from `offset` on; returns how many bytes there were."""
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if not count:
            break
        done += count
    return done


def read_file(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes. Raises `OSError`."""
    with open_file(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise OSError(f"{path} has {size} bytes; at most {limit} are read")
        content = bytearray(size)
        return bytes(content[: read_into(descriptor, memoryview(content), 0)])


def remove_file(path: Path) -> None:
    """Remove a file durably; nothing happens where there is none.

    Raises `OSError`, also where its directory is a link.
    """
    _refuse_links(path.parent)
    try:
        path.unlink()
    except FileNotFoundError:
        return
    sync_directory(path.parent)


def touch_file(path: Path) -> None:
    """Create a file where there is none. Raises `OSError`, also for a link."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | _NO_LINKS | _NO_WAITING, FILE_MODE))


def move_file(path: Path, target: Path) -> None:
    """Rename a file durably, on the same disk; nothing happens where there is none.

    Raises `OSError`, also where either directory is a link.
    """
    _refuse_links(path.parent, target.parent)
    try:
        path.replace(target)
    except FileNotFoundError:
        return
    sync_directory(target.parent)
    sync_directory(path.parent)


def locked(path: Path, seconds: float = 0.0) -> AbstractContextManager[object]:
    """Hold a file's lock during a `with`; only one process at a time can. seconds: to wait for it.

    Raises `OSError`, also for a link, and `filelock.Timeout` while another process holds it.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link", str(path))
    return FileLock(path, timeout=seconds, mode=FILE_MODE).acquire()


def make_private(directory: Path) -> None:
    """Remove all permissions of group and others, in a directory that another library writes."""
    for path in directory.rglob("*"):
        with suppress(OSError):  # deleted meanwhile, or another owner's
            if not path.is_symlink() and path.stat().st_mode & 0o077:
                path.chmod(DIRECTORY_MODE if path.is_dir() else FILE_MODE)


def sync_directory(path: Path) -> None:
    """Write a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(drafts: Path, older_than: float = STALE_SECONDS) -> list[Path]:
    """Remove the drafts of writers that died; returns their paths.

    older_than: in seconds; a younger file may still be written.
    """
    swept: list[Path] = []
    # Missing drafts, and those of another owner, must not keep a store from being read.
    with suppress(OSError):
        for path in [] if drafts.is_symlink() else sorted(drafts.iterdir()):
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime >= older_than:
                    path.unlink()
                    swept.append(path)
    return swept


def _refuse_links(*directories: Path) -> None:
    for directory in directories:
        if directory.is_symlink():
            raise OSError(errno.ELOOP, "its directory is a symbolic link", str(directory))


def _write_all(descriptor: int, part: bytes | memoryview) -> None:
    rest = memoryview(part).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]
