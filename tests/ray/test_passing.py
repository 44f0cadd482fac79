"""Requests and replies as plain values: an application can't tell them from a connection's."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fusionrag_integrations.ray.passing import Head, Piece, PlainRequest, replies

REQUEST = PlainRequest("id-1", "POST", "/v1/café", b"a=1", ((b"x-of", b"us"),), b"body")


def pieces(app: ASGIApp) -> list[Piece]:
    async def all_of() -> list[Piece]:
        return [piece async for piece in replies(app, REQUEST)]

    return asyncio.run(all_of())


def test_an_application_sees_the_request() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        seen = [
            request.method,
            request.url.path,
            request.query_params["a"],
            request.headers["x-of"],
        ]
        record = scope["state"]["record"]
        seen += [(await request.body()).decode(), record.request_id, record.method]
        await JSONResponse(seen, 201)(scope, receive, send)

    head, body = pieces(app)
    assert isinstance(head, Head)
    assert head.status == 201
    assert (b"content-type", b"application/json") in head.headers
    assert body == b'["POST","/v1/caf\\u00e9","1","us","body","id-1","POST"]'.replace(
        b"\\u00e9", "é".encode()
    )


def test_it_is_the_same_after_a_journey() -> None:
    scope = REQUEST.scope()
    assert PlainRequest.of(scope, "id-1", b"body") == REQUEST
    assert pickle.loads(pickle.dumps(REQUEST)) == REQUEST  # noqa: S301 as Ray does


def test_parts_come_as_they_are_made_and_those_that_wait_are_joined() -> None:
    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two "
        await go_on.wait()
        yield b"three"

    async def read() -> list[Piece]:
        found: list[Piece] = []
        async for piece in replies(StreamingResponse(parts()), REQUEST):
            found.append(piece)
            if b"two" in b"".join(one for one in found if isinstance(one, bytes)):
                go_on.set()
        return found

    head, *rest = asyncio.run(read())
    assert isinstance(head, Head)
    assert b"".join(piece for piece in rest if isinstance(piece, bytes)) == b"one two three"
    assert rest[-1] == b"three"


@pytest.mark.parametrize("asks", [True, False])
def test_whoever_stops_reading_is_gone(asks: bool) -> None:
    """An application that asks whether its client is there ends by itself, others are cancelled."""
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
        try:
            await (receive() if asks else asyncio.Event().wait())
            told.append("gone")
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    async def read_the_head() -> None:
        async with aclosing(replies(app, REQUEST)) as reply:
            async for _ in reply:
                break

    asyncio.run(read_the_head())
    assert told == ["gone" if asks else "cancelled"]


def test_a_failure_is_the_readers() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pieces(app)


def test_a_reply_without_a_body() -> None:
    assert len(pieces(Response(status_code=204))) == 1
