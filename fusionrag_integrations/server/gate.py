"""What every request passes: who asks, how large it is, whether the server closes; and its end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusionrag_integrations.server.errors import ApiError, api_error, closing, is_told
from fusionrag_integrations.server.forms import EVENTS, event
from fusionrag_integrations.server.keys import ANYONE, Caller
from fusionrag_integrations.server.records import Record
from fusionrag_integrations.server.service import Service
from fusionrag_integrations.server.traffic import CANCEL_SECONDS

HEALTH = "/health"  # asked without a key
SILENCE = 30  # seconds, after which a client is given up that sends no more of its request's body


class Reply:
    """What a request's client is sent; its record notes the status."""

    def __init__(self, record: Record, send: Send) -> None:
        self._record = record
        self._send = send
        self._has_events = False
        self._has_ended = False

    async def send(self, message: Message) -> None:
        """As ASGI has it."""
        if message["type"] == "http.response.start":
            self._record.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._record.request_id
            self._has_events = headers.get("content-type", "").startswith(EVENTS)
        else:
            self._has_ended = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Send an error in the answer's place, or as the last event of one that has begun."""
        if not self._record.status:
            await error.response()(scope, receive, self.send)
        elif self._has_events and not self._has_ended:
            await self.send({"type": "http.response.body", "body": event(error.body()).encode()})


class Gate:
    """ASGI middleware. Nothing of a request is read before its key was checked."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._service.traffic.passing():
            await self._pass(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = Record(method=scope["method"])
        scope.setdefault("state", {})["record"] = record
        reply = Reply(record, send)
        try:
            headers = Headers(scope=scope)
            record.who = self._caller(scope["path"], headers)
            record.caller = record.who.name
            await self._app(scope, self._limited(headers, receive), reply.send)
        except asyncio.CancelledError:
            if not self._service.traffic.closing:
                raise
            with suppress(TimeoutError):  # of a client that reads nothing
                async with asyncio.timeout(CANCEL_SECONDS):
                    await reply.fail(closing(), scope, receive)
        except Exception as error:  # noqa: BLE001 whatever it is, the client gets an answer
            if not is_told(error):
                record.log_failure(error)
            await reply.fail(api_error(error), scope, receive)
        finally:
            # Names of routes, so that there are few of them.
            record.endpoint = getattr(scope.get("route"), "path", "")
            record.duration_ms = record.ms()
            self._service.metrics.ended(record)
            record.log()

    def _caller(self, path: str, headers: Headers) -> Caller:
        """Who asks. Raises `ApiError`."""
        if self._service.traffic.closing:
            raise closing()
        if self._service.keys is None or path == HEALTH:
            return ANYONE
        return self._service.keys.caller(headers.get("authorization", ""))

    def _limited(self, headers: Headers, receive: Receive) -> Receive:
        """A request's body. Raises `ApiError` beyond the limit, and where no more of it comes."""
        most = self._service.limits.body_bytes
        length = headers.get("content-length", "")
        received = 0
        is_whole = False
        told = f"The body is larger than {most:,} bytes."
        too_large = ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, told)
        if length.isascii() and length.isdigit() and int(length) > most:
            raise too_large

        async def receive_limited() -> Message:
            nonlocal received, is_whole
            message = await (receive() if is_whole else self._next_part(receive))
            is_whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > most:
                raise too_large
            return message

        return receive_limited

    async def _next_part(self, receive: Receive) -> Message:
        """Of a request's body."""
        try:
            with self._service.traffic.reading():
                async with asyncio.timeout(SILENCE):
                    return await receive()
        except TimeoutError:
            told = f"No more of the body came for {SILENCE} seconds."
            raise ApiError(HTTPStatus.REQUEST_TIMEOUT, told) from None
