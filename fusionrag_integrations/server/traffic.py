"""Requests under way, and the end of them: whoever comes then is turned away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

POLL_SECONDS = 0.05
CANCEL_SECONDS = 1  # for requests to end that were broken off


class Traffic:
    """Counts the requests under way. For one event loop; `closing` may be read anywhere."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object] | None] = set()
        self.closing = False

    @property
    def under_way(self) -> int:
        """How many there are."""
        return len(self._tasks)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """A request, from its beginning to its end, which the task at work answers."""
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    async def end(self, seconds: float, hurry: Callable[[], bool]) -> None:
        """Let nobody in, wait for those under way, so long at most, and cancel the others.

        hurry: don't wait.
        """
        self.closing = True
        latest = monotonic() + seconds
        while self.under_way and monotonic() < latest and not hurry():
            await asyncio.sleep(POLL_SECONDS)
        late = [task for task in self._tasks if task is not None]
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=CANCEL_SECONDS)
