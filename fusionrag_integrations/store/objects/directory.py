"""`Objects` in a directory, such as one that machines mount."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fusionrag_integrations.errors import StoreUnreachableError
from fusionrag_integrations.store.layout import DRAFTS_DIRECTORY
from fusionrag_integrations.store.objects.base import ObjectEntry, Parts
from fusionrag_integrations.support.atomic_files import (
    create_file,
    open_file,
    read_file,
    read_into,
    remove_file,
    write_file,
)
from fusionrag_integrations.support.threads import Closable

_MOST = 1 << 40  # bytes of an object that is read whole


class DirectoryObjects(Closable):
    """`Objects` whose names are paths below a directory. See `Objects`."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self._directory = directory
        self._drafts = directory / DRAFTS_DIRECTORY

    def read(self, name: str) -> bytes:
        with self._named_errors(name):
            return read_file(self._path(name), _MOST)

    def read_ranges(self, name: str, ranges: Sequence[range]) -> list[bytes]:
        found: list[bytes] = []
        with self._named_errors(name), open_file(self._path(name)) as descriptor:
            for wanted in ranges:
                buffer = bytearray(len(wanted))
                count = read_into(descriptor, memoryview(buffer), wanted.start)
                found.append(bytes(buffer[:count]))
        return found

    def existing(self, names: Iterable[str]) -> set[str]:
        return {name for name in names if self._path(name).is_file()}

    def write(self, name: str, parts: Parts) -> None:
        with self._named_errors(name, is_written=True):
            write_file(self._path(name), parts, self._drafts)

    def create(self, name: str, content: bytes) -> bool:
        with self._named_errors(name, is_written=True):
            try:
                create_file(self._path(name), content, self._drafts)
            except FileExistsError:
                return self.read(name) == content
        return True

    def delete(self, names: Iterable[str], *, patiently: bool = True) -> None:
        for name in names:
            with self._named_errors(name), suppress(FileNotFoundError):
                remove_file(self._path(name))

    def entries(self, folder: str) -> Iterator[ObjectEntry]:
        with self._named_errors(folder):
            for path in (self._directory / folder).rglob("*"):
                with suppress(FileNotFoundError):  # deleted since it was listed
                    facts = path.lstat()
                    if path.is_file():
                        name = path.relative_to(self._directory).as_posix()
                        yield ObjectEntry(name, facts.st_size, facts.st_mtime)

    def check_exclusive(self) -> None:
        """Linking a file to a name that exists fails on every file system that knows links."""

    def close(self) -> None:
        pass

    def _path(self, name: str) -> Path:
        return self._directory / name

    @contextmanager
    def _named_errors(self, name: str, *, is_written: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not is_written:
                raise
            raise StoreUnreachableError(f"{self._path(name)} can't be used: {error}.") from error
