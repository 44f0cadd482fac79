"""What replicas hold in memory: told by each now and then, and noted by the router in between."""

from __future__ import annotations

from collections.abc import Iterable

WIDTH = 8  # bytes of a key that are told


def pack(keys: Iterable[str]) -> bytes:
    """Keys of KV, in `WIDTH` bytes each: of a million chunks only those in memory are told."""
    return b"".join(sorted(_short(key) for key in keys))


class Memory:
    """What one replica holds, as far as it is known.

    A report may have been made before the last requests came, so what they need counts as held
    until there has been another one.
    """

    def __init__(self) -> None:
        self._reported: frozenset[bytes] = frozenset()
        self._sent: set[bytes] = set()  # since the last report
        self._sent_before: set[bytes] = set()

    def report(self, packed: bytes) -> None:
        """The replica has told what it holds, as `pack` gives it."""
        self._reported = frozenset(packed[at : at + WIDTH] for at in range(0, len(packed), WIDTH))
        self._sent_before, self._sent = self._sent, set()

    def sent(self, keys: Iterable[str]) -> None:
        """A request that needs this KV has gone to the replica."""
        self._sent.update(map(_short, keys))

    def __contains__(self, key: object) -> bool:
        short = _short(str(key))
        return short in self._reported or short in self._sent or short in self._sent_before


def _short(key: str) -> bytes:
    return bytes.fromhex(key[: 2 * WIDTH])
