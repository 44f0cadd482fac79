"""How many requests are under way, how many wait for their turn, and who is turned away."""

from __future__ import annotations

from asyncio import Semaphore
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fusionrag_integrations.server.errors import turned_away
from fusionrag_integrations.server.keys import Caller


class Admission:
    """Requests of one kind, admitted in the order in which they came. For one event loop."""

    def __init__(self, at_once: int, queue: int, of_callers: Counter[str]) -> None:
        """at_once: how many are under way. queue: how many may wait.

        of_callers: how many requests each caller has, of this kind and the others that share it.
        """
        self._queue = queue
        self._room = Semaphore(at_once)
        self._of_callers = of_callers
        self.waiting = 0
        self.at_work = 0

    @asynccontextmanager
    async def place(self, caller: Caller) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the end of the block.

        Raises `ApiError` (429) where the queue is full, and for a caller with too many requests.
        """
        if self._room.locked() and self.waiting >= self._queue:
            raise turned_away("Too many requests are waiting; ask again later.")
        if caller.at_once is not None and self._of_callers[caller.name] >= caller.at_once:
            raise turned_away(f"This key has {caller.at_once} requests under way, its limit.")
        self._of_callers[caller.name] += 1
        try:
            await self._wait()
            try:
                yield
            finally:
                self.at_work -= 1
                self._room.release()
        finally:
            self._of_callers[caller.name] -= 1

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            await self._room.acquire()
        finally:
            self.waiting -= 1
        self.at_work += 1
