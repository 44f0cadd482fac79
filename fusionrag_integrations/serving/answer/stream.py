"""An answer while it is generated: pieces of text to iterate over, synchronously or not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from threading import Event, Lock
from typing import Protocol
from weakref import finalize

from fusionrag_integrations.errors import FusionRAGError, StoreError
from fusionrag_integrations.serving.answer.answer import Answer
from fusionrag_integrations.support.threads import Threads


class Answering(Protocol):
    """An answer that is computed step by step."""

    @property
    def done(self) -> bool:
        """Whether no step follows."""
        ...

    @property
    def answer(self) -> Answer | None:
        """The answer, once all steps are done."""
        ...

    def close(self) -> None:
        """Do no further step, and release all KV."""
        ...


class AnswerStream(Iterator[str], AsyncIterator[str]):
    """Pieces of an answer's text, for `for` and for `async for`, whose steps run in threads.

    `answer` holds the whole once they are exhausted. A stream that isn't read to the end pins KV
    until it is closed or collected: `with contextlib.closing(engine.stream(prompt)) as stream`.
    """

    def __init__(
        self, request: Answering, step: Callable[[], str], threads: Threads | None = None
    ) -> None:
        """step: does the request's next step, and returns text that is certain then.

        threads: where `async for` runs the steps; by default in threads of asyncio's.
        """
        self._request = request
        self._advance = step
        self._in_thread = asyncio.to_thread if threads is None else threads.run
        self._process = os.getpid()
        self._closed = Event()
        self._running = Lock()
        finalize(self, request.close).atexit = False

    def __next__(self) -> str:
        while not self._request.done:
            if piece := self._step():
                return piece
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

    def _step(self) -> str:
        if self._process != os.getpid():
            raise StoreError(
                "This answer was begun before its process was forked, and goes on in the parent "
                "alone. Ask again in the child."
            )
        with self._running:
            if not (self._closed.is_set() or self._request.done):
                piece = self._advance()
                if not self._closed.is_set():
                    return piece
            self._request.close()  # another thread has closed the stream meanwhile, or read it
            return ""

    def close(self) -> None:
        """Stop, from any thread: release all KV, and compute no further token.

        If another thread is computing, it stops after its current step. Does nothing if the stream
        has ended.
        """
        if self._process != os.getpid():
            return  # its KV is held in the parent
        self._closed.set()
        if self._running.acquire(blocking=False):
            try:
                self._request.close()
            finally:
                self._running.release()

    async def aclose(self) -> None:
        """`close`, for `contextlib.aclosing`."""
        self.close()

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
        if self._request.answer is None:
            raise FusionRAGError("The answer is there once its stream has been read to the end.")
        return self._request.answer
