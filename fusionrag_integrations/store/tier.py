"""A tier: what it holds of each record, within a budget of bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.heat import Heat

Held = TypeVar("Held")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[Held]):
    held: Held
    nbytes: int


class Tier(Generic[Held]):
    """Holds things by key. The coldest give way to hotter ones; what is pinned stays.

    The bytes held never exceed the budget. Not thread-safe.
    """

    def __init__(
        self,
        budget: int | None,
        heat: Heat,
        pinned: Counter[str],
        evict: Callable[[str], object] = lambda key: None,
    ) -> None:
        """budget: in bytes; None for no bound. pinned: how many requests use each key.

        evict: called with each key that gives way, before it does; if it raises, the key stays.
        """
        if budget is not None and budget < 0:
            raise InvalidInputError(f"A budget is {budget} bytes; give 0 or more, or None.")
        self.budget = budget
        self.used = 0
        self.evictions = 0
        self._heat = heat
        self._pinned = pinned
        self._evict = evict
        self._entries: dict[str, _Entry[Held]] = {}
        self._coldest: list[tuple[float, str]] = []  # a heap; entries that got hotter are late

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._entries))

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> Held | None:
        """What is held under this key."""
        entry = self._entries.get(key)
        return None if entry is None else entry.held

    def nbytes(self, key: str) -> int:
        """Bytes that are held under a key that is held."""
        return self._entries[key].nbytes

    def fits(self, nbytes: int) -> bool:
        """Whether there is room without evicting anything."""
        return self.budget is None or self.used + nbytes <= self.budget

    def make_room(self, key: str, nbytes: int) -> bool:
        """Evict colder keys until so many bytes fit; none if that doesn't make room."""
        victims = [] if self.fits(nbytes) else self._victims(key, nbytes)
        for victim in victims or ():
            self._evict(victim)
            self.discard(victim)
            self.evictions += 1
        return victims is not None

    def admit(self, key: str, held: Held, nbytes: int) -> bool:
        """Hold something under a key, in the place of what was there, if room can be made.

        Returns whether it is held.
        """
        self.discard(key)
        if not self.make_room(key, nbytes):
            return False
        self._entries[key] = _Entry(held, nbytes)
        self.used += nbytes
        heappush(self._coldest, (self._heat.of(key), key))
        if len(self._coldest) > 2 * len(self._entries) + 64:  # mostly of what is gone
            self._coldest = [(self._heat.of(key), key) for key in self._entries]
            heapify(self._coldest)
        return True

    def discard(self, key: str) -> None:
        """Let go of a key; nothing happens where it isn't held."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.used -= entry.nbytes

    def _victims(self, key: str, nbytes: int) -> list[str] | None:
        """The coldest keys that make room for `key` together; None where they can't."""
        if self.budget is None or nbytes > self.budget:
            return None
        limit = self._heat.of(key)
        room = self.budget - self.used
        victims: list[str] = []
        seen: dict[str, float] = {}
        while room < nbytes and self._coldest:
            noted, candidate = heappop(self._coldest)
            if candidate not in self._entries or candidate in seen:
                continue
            heat = self._heat.of(candidate)
            if heat > noted:  # used since
                heappush(self._coldest, (heat, candidate))
                continue
            seen[candidate] = heat
            if heat > limit:
                break
            if not self._pinned[candidate]:
                victims.append(candidate)
                room += self._entries[candidate].nbytes
        for candidate, heat in seen.items():
            heappush(self._coldest, (heat, candidate))
        return victims if room >= nbytes else None
