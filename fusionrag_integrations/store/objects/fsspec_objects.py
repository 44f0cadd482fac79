"""`Objects` through fsspec, which knows S3, GCS, Azure and many others."""

from __future__ import annotations

import errno
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import monotonic, sleep
from typing import Any, TypeVar
from uuid import uuid4

from fusionrag_integrations.errors import InvalidInputError, StoreError, StoreUnreachableError
from fusionrag_integrations.store.objects.base import ObjectEntry, Parts
from fusionrag_integrations.support.forks import Forkable
from fusionrag_integrations.support.threads import Closable

logger = logging.getLogger(__name__)

LISTED = 100  # names of a folder that are asked for, from which on it is listed instead
AT_ONCE = 16  # questions to the storage, each of which takes a round trip
PATIENCE = 60.0  # seconds that a storage may be away before what writes to it gives up
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 4.0  # seconds between attempts
_ABSENT = (FileNotFoundError, FileExistsError, PermissionError, NotImplementedError)
# Listings would hide what other machines write.
_EVERYWHERE = {"use_listings_cache": False, "skip_instance_cache": True}
# A request waits eight seconds for a server that hangs, not minutes: its KV then is a miss.
_ON_S3 = {
    "config_kwargs": {
        "connect_timeout": 2,
        "read_timeout": 4,
        "retries": {"mode": "standard", "total_max_attempts": 2},
        "max_pool_connections": 64,
    }
}

Result = TypeVar("Result")


class FsspecObjects(Forkable, Closable):
    """`Objects` at a URL of fsspec's. See `Objects`.

    Its options, such as keys and endpoints, are fsspec's configuration and the environment's.
    Everything but `read_ranges` is tried again for `PATIENCE` seconds by default.
    """

    def __init__(self, url: str) -> None:
        """Raises `InvalidInputError` for a URL that fsspec can't open, or not with what is
        installed.
        """
        self.url = url
        self.in_child()
        super().__init__()

    def in_child(self) -> None:
        """Connect anew: a forked child has neither the parent's connections nor its threads."""
        import fsspec

        is_s3 = self.url.startswith(("s3:", "s3a:"))
        options: dict[str, Any] = _EVERYWHERE | (_ON_S3 if is_s3 else {})
        try:
            self._fs, self._root = fsspec.url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise InvalidInputError(
                f"The store {self.url} can't be opened: {error}. Install what fsspec needs for "
                "it; for S3 that is pip install 'fusionrag-integrations[s3]'."
            ) from error
        if is_s3:
            self._fs.retries = 1  # s3fs multiplies botocore's by its own
        self._threads = ThreadPoolExecutor(AT_ONCE, "fusionrag-objects")

    def read(self, name: str) -> bytes:
        return self._patiently(name, lambda path: bytes(self._fs.cat_file(path)))

    def read_ranges(self, name: str, ranges: Sequence[range]) -> list[bytes]:
        path = self._path(name)
        starts, stops = [r.start for r in ranges], [r.stop for r in ranges]
        try:
            if len(ranges) == 1:
                return [bytes(self._fs.cat_file(path, start=starts[0], end=stops[0]))]
            paths = [path] * len(ranges)
            return list(self._fs.cat_ranges(paths, starts, stops, on_error="raise"))
        except FileNotFoundError:
            raise
        except Exception as error:  # each storage has errors of its own
            if _is_beyond_the_end(error):
                return self._read_shorter(name, ranges)
            raise self._unreachable(name, error) from error

    def _read_shorter(self, name: str, ranges: Sequence[range]) -> list[bytes]:
        """Of an object that ends before some of these ranges begin, which a storage may refuse."""
        content = self.read(name)
        return [content[wanted.start : wanted.stop] for wanted in ranges]

    def existing(self, names: Iterable[str]) -> set[str]:
        by_folder: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            by_folder[name.rpartition("/")[0]].append(name)
        listed = [folder for folder, asked in by_folder.items() if len(asked) >= LISTED]
        singly = [name for folder in by_folder.keys() - listed for name in by_folder[folder]]
        there = {
            name
            for name, exists in zip(singly, self._threads.map(self._exists, singly), strict=True)
            if exists
        }
        for folder, names_in in zip(listed, self._threads.map(self._names, listed), strict=True):
            there.update(names_in.intersection(by_folder[folder]))
        return there

    def _names(self, folder: str) -> set[str]:
        return {entry.name for entry in self.entries(folder)}

    def _exists(self, name: str) -> bool:
        # One byte is read: fsspec's own question lists a folder of that name where there is none.
        try:
            self._patiently(name, self._read_a_byte)
        except FileNotFoundError:
            return False
        return True

    def _read_a_byte(self, path: str) -> None:
        try:
            self._fs.cat_file(path, start=0, end=1)
        except Exception as error:  # each storage has errors of its own
            if not _is_beyond_the_end(error):
                raise

    def write(self, name: str, parts: Parts) -> None:
        content = b"".join(parts)
        try:
            self._patiently(name, lambda path: self._fs.pipe_file(path, content))
        except FileNotFoundError as error:  # such as a bucket that isn't there
            raise self._unreachable(name, error) from error

    def create(self, name: str, content: bytes) -> bool:
        try:
            self._patiently(name, lambda path: self._fs.pipe_file(path, content, mode="create"))
        except FileExistsError:  # perhaps by an attempt whose reply was lost
            return self.read(name) == content
        except FileNotFoundError as error:
            raise self._unreachable(name, error) from error
        return True

    def delete(self, names: Iterable[str], *, patiently: bool = True) -> None:
        def remove(name: str) -> None:
            with suppress(FileNotFoundError):
                self._patiently(name, self._fs.rm_file, PATIENCE if patiently else 0.0)

        list(self._threads.map(remove, names))

    def entries(self, folder: str) -> Iterator[ObjectEntry]:
        try:
            found = self._patiently(folder, lambda path: self._fs.find(path, detail=True))
        except FileNotFoundError:
            return
        for path, facts in found.items():
            if facts.get("type") == "directory":  # which came into being while it was listed
                continue
            name = path.removeprefix(self._root).lstrip("/")
            yield ObjectEntry(name, int(facts["size"]), _modified(facts))

    def check_exclusive(self) -> None:
        name = f"tries/{uuid4().hex}"
        try:
            refused = self.create(name, b"first") and not self.create(name, b"second")
        finally:
            self.delete([name])
        if not refused:
            raise StoreError(
                f"{self.url} can't be written: it replaces what is there where it is told to "
                "create, so that two writers could destroy each other's work. Reading works."
            )

    def close(self) -> None:
        self._threads.shutdown()

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _patiently(
        self, name: str, call: Callable[[str], Result], patience: float | None = None
    ) -> Result:
        """Call with a path, again and again while the storage is away, for so many seconds."""
        until = monotonic() + (PATIENCE if patience is None else patience)
        pause = _FIRST_PAUSE
        while True:
            try:
                return call(self._path(name))
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:  # each storage has errors of its own
                if isinstance(error, _ABSENT) or monotonic() + pause > until:
                    raise self._unreachable(name, error) from error
                logger.warning("%s can't be reached, and is tried again: %s", self.url, error)
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _unreachable(self, name: str, error: Exception) -> StoreUnreachableError:
        what = f"{type(error).__name__}: {error}".rstrip(".")
        return StoreUnreachableError(f"{self.url} can't be used ({what}; object {name}).")


def _is_beyond_the_end(error: Exception) -> bool:
    """Whether a storage refuses to read what an object, being shorter, doesn't have."""
    if isinstance(error, OSError) and error.errno == errno.EINVAL:  # as s3fs says it
        return True
    return 416 in (getattr(error, "status", None), getattr(error, "code", None))


def _modified(facts: dict[str, Any]) -> float:
    """When an object was written, by whatever name its storage has for that."""
    for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
        if (found := facts.get(name)) is not None:
            return float(found.timestamp() if hasattr(found, "timestamp") else found)
    raise StoreError(f"The storage doesn't say when {facts.get('name')!r} was written.")
