"""One tier: entries by key within a budget of bytes, evicted by their LRFU scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.kv.lrfu import LRFUScores

Held = TypeVar("Held")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[Held]):
    held: Held
    nbytes: int


class Tier(Generic[Held]):
    """Holds entries by key. Those with the lowest scores are evicted first, pinned ones never.

    The bytes held never exceed the budget. Not thread-safe.
    """

    def __init__(
        self,
        budget: int | None,
        scores: LRFUScores,
        pinned: Counter[str],
        evict: Callable[[str], object] = lambda key: None,
    ) -> None:
        """budget: in bytes; None for no bound. pinned: how many requests use each key.

        evict: called with each key before it is evicted; if it raises, the key stays.
        """
        if budget is not None and budget < 0:
            raise InvalidInputError(f"A budget is {budget} bytes; give 0 or more, or None.")
        self.budget = budget
        self.used = 0
        self.evictions = 0
        self._scores = scores
        self._pinned = pinned
        self._evict = evict
        self._entries: dict[str, _Entry[Held]] = {}
        self._queue: list[tuple[float, str]] = []  # a heap; scores may have risen since

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._entries))

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def get(self, key: str) -> Held | None:
        """What is held under this key."""
        entry = self._entries.get(key)
        return None if entry is None else entry.held

    def nbytes(self, key: str) -> int:
        """The size of a key's entry."""
        return self._entries[key].nbytes

    @property
    def queued(self) -> int:
        """Entries of the queue for eviction, outdated ones among them."""
        return len(self._queue)

    def fits(self, nbytes: int) -> bool:
        """Whether there is room without evicting anything."""
        return self.budget is None or self.used + nbytes <= self.budget

    def make_room(self, key: str, nbytes: int) -> bool:
        """Evict keys with lower scores until so many bytes fit; none if that isn't possible."""
        victims = [] if self.fits(nbytes) else self._victims(key, nbytes)
        for victim in victims or ():
            self._evict(victim)
            self.discard(victim)
            self.evictions += 1
        return victims is not None

    def admit(self, key: str, held: Held, nbytes: int) -> bool:
        """Hold an entry, replacing the key's former one, if room can be made; returns whether."""
        self.discard(key)
        if not self.make_room(key, nbytes):
            return False
        self._entries[key] = _Entry(held, nbytes)
        self.used += nbytes
        heappush(self._queue, (self._scores.of(key), key))
        if len(self._queue) > 2 * len(self._entries) + 64:  # mostly outdated
            self._queue = [(self._scores.of(key), key) for key in self._entries]
            heapify(self._queue)
        return True

    def discard(self, key: str) -> None:
        """Remove a key's entry; nothing happens where there is none."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.used -= entry.nbytes

    def _victims(self, key: str, nbytes: int) -> list[str] | None:
        """The keys to evict for `key`, lowest scores first; None where that doesn't make room."""
        if self.budget is None or nbytes > self.budget:
            return None
        limit = self._scores.of(key)
        room = self.budget - self.used
        victims: list[str] = []
        seen: dict[str, float] = {}
        while room < nbytes and self._queue:
            noted, candidate = heappop(self._queue)
            if candidate not in self._entries or candidate in seen:
                continue
            score = self._scores.of(candidate)
            if score > noted:  # used since
                heappush(self._queue, (score, candidate))
                continue
            seen[candidate] = score
            if score > limit:
                break
            if not self._pinned[candidate]:
                victims.append(candidate)
                room += self._entries[candidate].nbytes
        for candidate, score in seen.items():
            heappush(self._queue, (score, candidate))
        return victims if room >= nbytes else None
