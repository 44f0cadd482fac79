"""Files that are there whole or not at all, and never through a link; those of a store for their
owner alone.

Each call that touches the disk ends in one of the `os` module's, so that tests can let it fail, or
be the last.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from fusionrag_integrations.errors import InvalidInputError

FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
STALE_SECONDS = 3600  # no write takes this long, so an older temporary file has no writer

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
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for its writer


def make_directory(path: Path) -> None:
    """A directory with its parents, and their names on the disk; one that is there stays so.

    Raises `OSError`, `NotADirectoryError` for a link among others.
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
    parts: Sequence[bytes | memoryview],
    drafts: Path,
    *,
    sync: bool = True,
    mode: int = FILE_MODE,
) -> None:
    """Put a file in the place of one that is there: a reader sees the old one or the new one.

    drafts: a directory of the same file system, where the file lies until it is complete. sync:
    when the call returns, content and name are on the disk. mode: of the file. Raises `OSError`.
    """
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
        draft.replace(path)
        if sync:
            sync_directory(path.parent)
    finally:
        with suppress(OSError):  # gone after the rename, of no use after a failure
            draft.unlink()


def check_output(path: Path) -> None:
    """See that a user's path is one that `write_output` writes to, before work is put into it.

    Raises `InvalidInputError` where anything but a regular file stands there, or no directory
    holds it.
    """
    if _stream(path) is not None:
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
    """Write a file where a user wants it: whole or not at all, in the place of a regular file.

    A new file's mode is what the user's umask says, of a private one its owner's alone; a file
    that is there keeps its own. The process's own output (`/dev/stdout`, `/dev/stderr`, `-`) is
    written to as it stands. Raises `InvalidInputError`.
    """
    check_output(path)
    stream = _stream(path)
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


def _stream(path: Path) -> int | None:
    """The descriptor of the process's own output that a path names; None for any other path."""
    return _STREAMS.get(str(path))


@contextmanager
def open_file(path: Path) -> Iterator[int]:
    """The descriptor of a regular file, for reading.

    Raises `OSError`: `FileNotFoundError`, and for links, pipes and directories too.
    """
    descriptor = open_descriptor(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_descriptor(path: Path) -> int:
    """Like `open_file`, for the caller to close."""
    if path.parent.is_symlink():
        raise OSError(errno.ELOOP, "its directory is a symbolic link", str(path.parent))
    descriptor = os.open(path, os.O_RDONLY | _NO_LINKS | _NO_WAITING)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EISDIR, "not a regular file", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill the buffer with what stands at `offset`; returns how much there was of it."""
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if not count:
            break
        done += count
    return done


def read_file(path: Path, limit: int) -> bytes:
    """All of a file of at most `limit` bytes. Raises `OSError`."""
    with open_file(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise OSError(f"{path} has {size} bytes; at most {limit} are read")
        content = bytearray(size)
        return bytes(content[: read_into(descriptor, memoryview(content), 0)])


def remove_file(path: Path) -> None:
    """Remove a file and see that it stays so; nothing happens where there is none.

    Raises `OSError`, for a link in its directory's place too.
    """
    if path.parent.is_symlink():
        raise OSError(errno.ELOOP, "its directory is a symbolic link", str(path.parent))
    try:
        path.unlink()
    except FileNotFoundError:
        return
    sync_directory(path.parent)


def touch_file(path: Path) -> None:
    """See that there is a file. Raises `OSError`, for a link too."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | _NO_LINKS | _NO_WAITING, FILE_MODE))


def move_file(path: Path, target: Path) -> None:
    """Give a file another name on the same disk; nothing happens where there is none.

    Raises `OSError`, for a link in either directory's place too.
    """
    for directory in (path.parent, target.parent):
        if directory.is_symlink():
            raise OSError(errno.ELOOP, "its directory is a symbolic link", str(directory))
    try:
        path.replace(target)
    except FileNotFoundError:
        return
    sync_directory(target.parent)
    sync_directory(path.parent)


def locked(path: Path) -> AbstractContextManager[object]:
    """The lock of a file, which one process at a time may hold, until the end of a `with`.

    Raises `OSError`, for a link too, and `filelock.Timeout` while another holds it.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link", str(path))
    return FileLock(path, timeout=0, mode=FILE_MODE).acquire()


def close_to_others(directory: Path) -> None:
    """Take from others what another library's files in a directory of ours let them do."""
    for path in directory.rglob("*"):
        with suppress(OSError):  # gone meanwhile, or another owner's
            if not path.is_symlink() and path.stat().st_mode & 0o077:
                path.chmod(DIRECTORY_MODE if path.is_dir() else FILE_MODE)


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(drafts: Path, older_than: float = STALE_SECONDS) -> list[Path]:
    """Remove what writers that died have left; returns what it was.

    older_than: in seconds; a younger file may have a living writer.
    """
    swept: list[Path] = []
    # Where there are none, or they aren't ours to delete, neither hinders reading.
    with suppress(OSError):
        for path in [] if drafts.is_symlink() else sorted(drafts.iterdir()):
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime >= older_than:
                    path.unlink()
                    swept.append(path)
    return swept


def _write_all(descriptor: int, part: bytes | memoryview) -> None:
    rest = memoryview(part).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]
