"""An answer while it is made: pieces of text to iterate over, in a loop or an event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Iterator
from threading import Event, Lock

from fusionrag_integrations.answer.answer import Answer
from fusionrag_integrations.errors import FusionRAGError, StoreError
from fusionrag_integrations.threads import Threads


class AnswerStream(Iterator[str], AsyncIterator[str]):
    """Pieces of an answer's text, for `for` and for `async for`, whose steps run in threads.

    `answer` holds the whole once they are exhausted. A stream that is left early keeps KV in use
    until it is closed or collected: `with contextlib.closing(engine.stream(prompt)) as stream`.
    """

    def __init__(self, events: Generator[str | Answer], threads: Threads | None = None) -> None:
        """events: pieces, empty ones where work may stop without one, and at last the answer.

        threads: where an event loop's steps run; by default in threads of its own.
        """
        self._events = events
        self._in_thread = asyncio.to_thread if threads is None else threads.run
        self._process = os.getpid()
        self._answer: Answer | None = None
        self._closed = Event()
        self._running = Lock()

    def __next__(self) -> str:
        while (event := self._step()) is not None:
            if isinstance(event, Answer):
                self._answer = event
                self.close()
            elif event:
                return event
        raise StopIteration

    async def __anext__(self) -> str:
        try:
            piece = await self._in_thread(next, self, None)
        except asyncio.CancelledError:
            self.close()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    def _step(self) -> str | Answer | None:
        if self._process != os.getpid():
            raise StoreError(
                "This answer was begun before its process was forked, and goes on in the parent "
                "alone. Ask again in the child."
            )
        with self._running:
            event = next(self._events, None)
        if self._closed.is_set():  # meanwhile, by another thread
            self.close()
            return None
        return event

    def close(self) -> None:
        """End here, from any thread: let go of all KV, and compute no further token.

        Where another thread is at work, it does so as soon as its token is there, or its prompt
        computed. Nothing happens where the stream has ended.
        """
        if self._process != os.getpid():
            return  # its KV is held in the parent
        self._closed.set()
        if self._running.acquire(blocking=False):
            try:
                self._events.close()
            finally:
                self._running.release()

    def read(self) -> Answer:
        """Read to the end, and give the answer. Raises as `answer` does where it was closed."""
        for _ in self:
            pass
        return self.answer

    async def aread(self) -> Answer:
        """`read` in a thread. Cancelled, it closes the stream."""
        try:
            return await self._in_thread(self.read)
        except asyncio.CancelledError:
            self.close()
            raise

    @property
    def answer(self) -> Answer:
        """The answer with its usage and timing; raises `FusionRAGError` before the end."""
        if self._answer is None:
            raise FusionRAGError("The answer is there once its stream has been read to the end.")
        return self._answer
