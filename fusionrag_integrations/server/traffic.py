"""Requests under way, and the end of them: whoever comes then is turned away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

POLL_SECONDS = 0.05


class Traffic:
    """Counts the requests under way. For one event loop; `closing` may be read anywhere."""

    def __init__(self) -> None:
        self.under_way = 0
        self.closing = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        """A request, from its beginning to its end."""
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def end(self, seconds: float, hurry: Callable[[], bool]) -> None:
        """Let nobody in, and wait for those under way, so long at most. hurry: don't wait."""
        self.closing = True
        latest = monotonic() + seconds
        while self.under_way and monotonic() < latest and not hurry():
            await asyncio.sleep(POLL_SECONDS)
