"""Requests under way, and the end of them: whoever comes then is turned away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import monotonic

from fusionrag_integrations.server.errors import closing

POLL_SECONDS = 0.05
CANCEL_SECONDS = 1  # for requests to end that were broken off

Tasks = set[asyncio.Task[object] | None]


class Traffic:
    """Counts the requests under way. For one event loop; `closing` may be read anywhere."""

    def __init__(self) -> None:
        self._tasks: Tasks = set()
        self._reading: Tasks = set()
        self.closing = False

    @property
    def under_way(self) -> int:
        """How many there are."""
        return len(self._tasks)

    def passing(self) -> AbstractContextManager[None]:
        """A request, from its beginning to its end, which the task at work answers."""
        return _among(self._tasks)

    def reading(self) -> AbstractContextManager[None]:
        """While the task at work waits for its request's body. Raises `ApiError` at the end."""
        if self.closing:
            raise closing()
        return _among(self._reading)

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


@contextmanager
def _among(tasks: Tasks) -> Iterator[None]:
    """The task at work is one of these."""
    task = asyncio.current_task()
    tasks.add(task)
    try:
        yield
    finally:
        tasks.discard(task)


def _cancel(tasks: Tasks) -> list[asyncio.Task[object]]:
    cancelled = [task for task in tasks if task is not None]
    for task in cancelled:
        task.cancel()
    return cancelled
