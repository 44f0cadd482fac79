"""The port for named bytes at a URL, which several machines read and write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

Parts = Sequence[bytes | memoryview]


class ObjectEntry(NamedTuple):
    """One object. modified: in seconds since the epoch, by the clock of the storage."""

    name: str
    nbytes: int
    modified: float


class Objects(Protocol):
    """Objects by name, such as "kv/ab/abcd", for several threads, processes and machines.

    An object is there whole or not at all. Every method raises `StoreUnreachableError` where the
    storage can't be reached, or refuses; those that read raise `FileNotFoundError` for names that
    are not there.
    """

    @property
    def url(self) -> str:
        """Where they are, for messages."""

    def read(self, name: str) -> bytes:
        """A whole object."""

    def read_ranges(self, name: str, ranges: Sequence[range]) -> list[bytes]:
        """Bytes of an object, as far as there are any. Doesn't try again where that fails."""
        ...

    def existing(self, names: Iterable[str]) -> set[str]:
        """Those of these names that are there, asked one by one: nothing is listed."""
        ...

    def write(self, name: str, parts: Parts) -> None:
        """Write an object, replacing an existing one."""

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one; returns whether it is this one that is there.

        Of several callers at once, with different contents, exactly one gets True.
        """
        ...

    def delete(self, names: Iterable[str], *, patiently: bool = True) -> None:
        """Delete objects; those that aren't there are passed over.

        patiently: try again while the storage is away.
        """

    def entries(self, folder: str) -> Iterator[ObjectEntry]:
        """All objects whose names begin with `folder` and a slash, in no order."""
        ...

    def check_exclusive(self) -> None:
        """Try whether `create` refuses what is there. Raises `StoreError` where it doesn't."""

    def close(self) -> None:
        """Release all resources. May be called again."""
