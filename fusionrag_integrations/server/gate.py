"""What every request passes, from its beginning to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusionrag_integrations.server.entrance import Entrance
from fusionrag_integrations.server.errors import ApiError, api_error, closing, is_told
from fusionrag_integrations.server.events import EVENTS, event
from fusionrag_integrations.server.records import Record
from fusionrag_integrations.server.traffic import CANCEL_SECONDS


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

    def __init__(self, app: ASGIApp, entrance: Entrance, ended: Callable[[Record], None]) -> None:
        """ended: called with each request's record at its end."""
        self._app = app
        self._entrance = entrance
        self._traffic = entrance.traffic
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._traffic.passing():
            await self._pass(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        # One is there already where another server has passed the request on.
        state = scope.setdefault("state", {})
        record: Record = state.setdefault("record", Record(method=scope["method"]))
        reply = Reply(record, send)
        try:
            headers = Headers(scope=scope)
            record.who = self._entrance.caller(scope["path"], headers)
            record.caller = record.who.name
            await self._app(scope, self._entrance.limited(headers, receive), reply.send)
        except asyncio.CancelledError:
            if not self._traffic.closing:
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
            self._ended(record)
