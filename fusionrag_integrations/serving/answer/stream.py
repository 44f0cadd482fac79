"""An answer while it is generated: pieces of text to iterate over, synchronously or not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Protocol
from weakref import finalize

from fusionrag_integrations.errors import FusionRAGError, StoreError
from fusionrag_integrations.serving.answer.answer import Answer


class Answering(Protocol):
    """An answer that is being computed, once a piece of it is asked for."""

    @property
    def answer(self) -> Answer | None:
        """The answer, once it is whole."""
        ...

    def begin(self) -> None:
        """Begin to compute it, unless that was done."""
        ...

    def next_piece(self) -> str | None:
        """Wait for text that no later token can change; None at the end. Raises what ended it."""
        ...

    async def anext_piece(self) -> str | None:
        """The same, for event loops."""
        ...

    def close(self) -> None:
        """Compute no further, from any thread, and release all KV."""
        ...

    def abandon(self) -> None:
        """The same where nobody reads it any more; takes no lock, since a finalizer calls it.

        A finalizer runs at any allocation of any thread, whatever that thread, or one that waits
        for it, holds.
        """
        ...


class AnswerStream(Iterator[str], AsyncIterator[str]):
    """Pieces of an answer's text, for `for` and for `async for`.

    Work begins when it is first read, and goes on whether it is read or not. `answer` holds the
    whole once they are exhausted. A stream that isn't read to the end holds KV until its answer is
    whole, or it is closed or collected: `with contextlib.closing(engine.stream(prompt)) as stream`.
    """

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._process = os.getpid()
        finalize(self, _abandon, answering, self._process).atexit = False

    def __next__(self) -> str:
        self._check_process()
        try:
            piece = self._answering.next_piece()
        except KeyboardInterrupt:
            self.close()
            raise
        if piece is None:
            raise StopIteration
        return piece

    async def __anext__(self) -> str:
        self._check_process()
        try:
            piece = await self._answering.anext_piece()
        except asyncio.CancelledError:
            self.close()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    def begin(self) -> None:
        """Begin work now. Raises `StoreClosedError` where the engine is closed."""
        self._check_process()
        self._answering.begin()

    def close(self) -> None:
        """Stop, from any thread: compute no further token, and release all KV.

        A pass of the model that is under way ends first; this doesn't wait for it. Does nothing if
        the answer is whole.
        """
        if self._is_mine:
            self._answering.close()

    async def aclose(self) -> None:
        """`close`, for `contextlib.aclosing`."""
        self.close()

    def read(self) -> Answer:
        """Read to the end, and give the answer. Raises as `answer` does where it was closed."""
        for _ in self:
            pass
        return self.answer

    async def aread(self) -> Answer:
        """`read`, for event loops. Cancelled, it closes the stream."""
        async for _ in self:
            pass
        return self.answer

    @property
    def answer(self) -> Answer:
        """The answer with its usage and timing; raises `FusionRAGError` before the end."""
        if self._answering.answer is None:
            raise FusionRAGError("The answer is there once its stream has been read to the end.")
        return self._answering.answer

    @property
    def _is_mine(self) -> bool:
        return self._process == os.getpid()

    def _check_process(self) -> None:
        if not self._is_mine:
            raise StoreError(
                "This answer was begun before its process was forked, and goes on in the parent "
                "alone. Ask again in the child."
            )


def _abandon(answering: Answering, process: int) -> None:
    """End an answer, but in a forked child: it goes on in the parent, and holds KV there."""
    if process == os.getpid():
        answering.abandon()
