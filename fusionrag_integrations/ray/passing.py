"""A request and its reply as plain values, which travel between processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

from starlette.types import ASGIApp, Message, Scope

from fusionrag_integrations.server.records import Record
from fusionrag_integrations.server.traffic import CANCEL_SECONDS

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """An HTTP request. headers, query: as in ASGI's scope. request_id: for logs."""

    request_id: str
    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes

    @classmethod
    def of(cls, scope: Scope, request_id: str, body: bytes) -> PlainRequest:
        """A request that has come to an ASGI application, with its whole body."""
        headers = tuple((bytes(name), bytes(value)) for name, value in scope["headers"])
        return cls(
            *(request_id, scope["method"], scope["path"], scope["query_string"], headers, body)
        )

    def scope(self) -> Scope:
        """For an application in this process."""
        record = Record(request_id=self.request_id, method=self.method)
        return {
            "type": "http",
            # From 2.4 on, applications don't ask whether the client is gone.
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query,
            "headers": list(self.headers),
            "state": {"record": record},
        }


@dataclass(frozen=True, slots=True)
class Head:
    """What a reply begins with."""

    status: int
    headers: Headers


Piece = Head | bytes


async def replies(app: ASGIApp, request: PlainRequest) -> AsyncIterator[Piece]:
    """An application's reply: its head, then parts of its body as they come.

    Closing it, or cancelling whoever reads it, tells the application that its client has gone, as a
    lost connection would, and waits for its end. Raises what the application raises.
    """
    pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
    gone = asyncio.Event()
    bodies = iter([request.body])

    async def receive() -> Message:
        for body in bodies:
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            pieces.put_nowait(Head(message["status"], tuple(map(tuple, message["headers"]))))
        elif body := message.get("body"):
            pieces.put_nowait(bytes(body))

    async def answer() -> None:
        await app(request.scope(), receive, send)

    answering = asyncio.create_task(answer())
    answering.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        async for piece in _joined(pieces):
            yield piece
        await answering
    finally:
        if not answering.done():
            gone.set()
            await asyncio.wait([answering], timeout=CANCEL_SECONDS)
            answering.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await answering


async def _joined(pieces: asyncio.Queue[Piece | None]) -> AsyncIterator[Piece]:
    """The pieces until None, of which parts of the body that wait together are joined."""
    ended = False
    while not ended:
        waiting = [await pieces.get()]
        while not pieces.empty():
            waiting.append(pieces.get_nowait())
        ended = waiting[-1] is None
        for piece in _merged(one for one in waiting if one is not None):
            yield piece


def _merged(pieces: Iterable[Piece]) -> Iterator[Piece]:
    for of_body, group in groupby(pieces, lambda piece: isinstance(piece, bytes)):
        if of_body:
            yield b"".join(piece for piece in group if isinstance(piece, bytes))
        else:
            yield from group
