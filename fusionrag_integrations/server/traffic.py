"""Requests under way, and the end of them: whoever comes then is turned away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from fusionrag_integrations.server.errors import closing

POLL_SECONDS = 0.05
CANCEL_SECONDS = 1  # for requests to end that were broken off


class Traffic:
    """Counts the requests under way. For one event loop; `closing` may be read anywhere."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object] | None] = set()
        self._reading: set[asyncio.Task[object] | None] = set()
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

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While the task at work waits for its request's body. Raises `ApiError` at the end."""
        if self.closing:
            raise closing()
        task = asyncio.current_task()
        self._reading.add(task)
        try:
            yield
        finally:
            self._reading.discard(task)

    async def end(self, seconds: float, hurry: Callable[[], bool]) -> None:
        """Let nobody in, wait for those under way, so long at most, and cancel the others.

        Those that haven't come whole are cancelled at once: nobody knows when they would. hurry:
        don't wait.
        """
        self.closing = True
        _cancel(self._reading)
        latest = monotonic() + seconds
        while self.under_way and monotonic() < latest and not hurry():
            await asyncio.sleep(POLL_SECONDS)
        if late := _cancel(self._tasks):
            await asyncio.wait(late, timeout=CANCEL_SECONDS)


def _cancel(tasks: set[asyncio.Task[object] | None]) -> list[asyncio.Task[object]]:
    cancelled = [task for task in tasks if task is not None]
    for task in cancelled:
        task.cancel()
    return cancelled
