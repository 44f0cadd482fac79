"""Pieces of text on their way from the thread that computes an answer to whoever reads it."""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future, get_running_loop
from collections import deque
from contextlib import suppress
from threading import Condition

Reader = tuple[AbstractEventLoop, "Future[None]"]


class Pieces:
    """A queue of pieces, read by threads and by event loops, and its end."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._pieces: deque[str] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._waiting: list[Reader] = []

    def put(self, piece: str) -> None:
        """Add a piece, unless the answer has ended."""
        with self._changed:
            if piece and not self._ended:
                self._pieces.append(piece)
                self._notify()

    def end(self, error: BaseException | None = None) -> None:
        """No piece follows. error: raised once, to a reader of what is left."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
                self._notify()

    def discard(self) -> None:
        """End it at once: nobody is to read what is left."""
        with self._changed:
            self._pieces.clear()
            self._ended, self._error = True, None
            self._notify()

    def get(self) -> str | None:
        """Wait for the next piece; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._ended)
            return self._next()

    async def aget(self) -> str | None:
        """The same without blocking the event loop."""
        while True:
            with self._changed:
                if self._pieces or self._ended:
                    return self._next()
                loop = get_running_loop()
                changed: Future[None] = loop.create_future()
                self._waiting.append((loop, changed))
            await changed

    def _next(self) -> str | None:
        if self._pieces:
            return self._pieces.popleft()
        error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def _notify(self) -> None:
        self._changed.notify_all()
        waiting, self._waiting = self._waiting, []
        for loop, changed in waiting:
            with suppress(RuntimeError):  # the loop is closed, and its reader gone
                loop.call_soon_threadsafe(_wake, changed)


def _wake(changed: Future[None]) -> None:
    if not changed.done():  # it is, where its reader was cancelled
        changed.set_result(None)
