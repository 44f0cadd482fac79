"""An answer of a server's, while it comes and as a whole."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, fields
from threading import Lock
from typing import Any

from httpx_sse import EventSource

from fusionrag_integrations.adapters.remote.connection import Connection
from fusionrag_integrations.adapters.remote.failures import failure_within
from fusionrag_integrations.errors import (
    FusionRAGError,
    ServerError,
    ServerUnreachableError,
    StoreError,
)
from fusionrag_integrations.serving.usage import Usage
from fusionrag_integrations.support.inputs import parse_json

_LAST = "[DONE]"
_COUNTS = tuple(field.name for field in fields(Usage))


@dataclass(frozen=True, slots=True)
class RemoteAnswer:
    """A server's answer, with the report that its engine gave."""

    text: str
    usage: Usage
    reported: Mapping[str, Any]

    @property
    def finish_reason(self) -> str:
        """ "stop" or "length"."""
        return str(self.reported["finish_reason"])

    def report(self) -> dict[str, Any]:
        """How the answer came about, as `Answer.report` tells it."""
        return dict(self.reported)


class RemoteStream(Iterator[str], AsyncIterator[str]):
    """Pieces of an answer's text, for `for` or for `async for`, with `AnswerStream`'s interface.

    The request is made when it is first read. A stream that is closed, collected or cancelled ends
    its connection, by which the server knows that nobody reads on.
    """

    def __init__(self, connection: Connection, path: str, body: dict[str, Any]) -> None:
        self._connection = connection
        self._request = ("POST", path, body)
        self._received = _Received()
        self._events: Generator[str, None, None] | None = None
        self._async_events: AsyncGenerator[str, None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self._reading = Lock()  # held by the thread that reads on, or closes
        self._awaiting = asyncio.Lock()  # the same for tasks
        self._closed = False

    def __next__(self) -> str:
        self._check_process()
        if self._async_events is not None:
            raise FusionRAGError("This answer is read by `async for`; read it on in that way.")
        with self._reading:
            if self._events is None:
                self._events = self._opened()
            piece = "" if self._closed else next(self._events, "")
            if self._closed:  # by another thread, while this one waited
                self._events.close()
                raise StopIteration
        if not piece:
            raise StopIteration
        return piece

    async def __anext__(self) -> str:
        self._check_process()
        if self._events is not None:
            raise FusionRAGError("This answer is read by `for`; read it on in that way.")
        if self._async_events is None:
            self._async_events = self._aopened()
            self._loop = asyncio.get_running_loop()
        async with self._awaiting:
            piece = "" if self._closed else await anext(self._async_events, "")
            if self._closed:  # by another task, while this one waited
                await self._async_events.aclose()
                raise StopAsyncIteration
        if not piece:
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        """End the request, from any thread. Does nothing if it has ended.

        If another thread or task waits for the next piece, the request ends when that has come.
        """
        self._closed = True
        if self._process != os.getpid():
            return  # the connection is the parent's
        if self._loop is not None and not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self.aclose(), self._loop)
        elif self._events is not None and self._reading.acquire(blocking=False):
            try:
                self._events.close()
            finally:
                self._reading.release()

    async def aclose(self) -> None:
        """`close`, for a stream that is read by `async for`: awaits the connection's end."""
        self._closed = True
        if self._async_events is None:
            self.close()
        else:
            async with self._awaiting:
                await self._async_events.aclose()

    def read(self) -> RemoteAnswer:
        """Read to the end, and give the answer. Raises as `answer` does where it was closed."""
        for _ in self:
            pass
        return self.answer

    async def aread(self) -> RemoteAnswer:
        """`read`, asynchronously. Cancelled, it ends the request."""
        async for _ in self:
            pass
        return self.answer

    @property
    def answer(self) -> RemoteAnswer:
        """The answer with its usage and timing; raises `FusionRAGError` before the end."""
        if self._received.answer is None:
            raise FusionRAGError("The answer is there once its stream has been read to the end.")
        return self._received.answer

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise StoreError(
                "This answer was begun before its process was forked, and goes on in the parent "
                "alone. Ask again in the child."
            )

    def _opened(self) -> Generator[str, None, None]:
        with self._connection.open(*self._request) as response:
            for event in EventSource(response).iter_sse():
                if piece := self._received.piece(event.data):
                    yield piece
            self._check_complete()

    async def _aopened(self) -> AsyncGenerator[str, None]:
        async with (
            self._connection.aopen(*self._request) as response,
            aclosing(EventSource(response).aiter_sse()) as events,
        ):
            async for event in events:
                if piece := self._received.piece(event.data):
                    yield piece
            self._check_complete()

    def _check_complete(self) -> None:
        if self._received.answer is None:
            raise ServerUnreachableError(
                f"The server at {self._connection.base_url} broke off before its answer was "
                "complete; ask again."
            )


class _Received:
    """What has come of an answer."""

    def __init__(self) -> None:
        self.answer: RemoteAnswer | None = None
        self._text: list[str] = []

    def piece(self, data: str) -> str:
        """The text in an event's data, which may be empty. Raises the error that it tells of."""
        if data == _LAST:
            return ""
        try:
            event = parse_json(data)
            if "error" in event:
                raise failure_within(event["error"])
            text = "".join(map(_text, event["choices"]))
            self._text.append(text)
            if reported := event.get("fusionrag"):
                usage = Usage(**{name: reported["usage"][name] for name in _COUNTS})
                self.answer = RemoteAnswer("".join(self._text), usage, reported)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, FusionRAGError):
                raise
            raise ServerError(
                "The server's answer isn't in the form that is expected; does it have this "
                f"package's version? ({type(error).__name__}: {error})"
            ) from error
        return text


def _text(choice: Mapping[str, Any]) -> str:
    """The text of a completion's piece, or of a chat's."""
    return choice.get("text") or choice.get("delta", {}).get("content") or ""
