"""What is asked of every request first: who asks, how large it is, whether the server closes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from fusionrag_integrations.server.errors import ApiError, closing
from fusionrag_integrations.server.keys import ANYONE, Caller, Keys
from fusionrag_integrations.server.limits import Limits
from fusionrag_integrations.server.traffic import Traffic

HEALTH = "/health"  # asked without a key
SILENCE = 30  # seconds, after which a client is given up that sends no more of its request's body


@dataclass(frozen=True, slots=True, eq=False)
class Entrance:
    """Who may ask, and how much. keys: None where everybody may do everything."""

    keys: Keys | None
    limits: Limits
    traffic: Traffic

    def caller(self, path: str, headers: Headers) -> Caller:
        """Who asks. Raises `ApiError`: 401, and 503 once the server closes."""
        if self.traffic.closing:
            raise closing()
        if self.keys is None or path == HEALTH:
            return ANYONE
        return self.keys.caller(headers.get("authorization", ""))

    def limited(self, headers: Headers, receive: Receive) -> Receive:
        """A request's body. Raises `ApiError` beyond the limit, and where no more of it comes."""
        most = self.limits.body_bytes
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
            with self.traffic.reading():
                async with asyncio.timeout(SILENCE):
                    return await receive()
        except TimeoutError:
            told = f"No more of the body came for {SILENCE} seconds."
            raise ApiError(HTTPStatus.REQUEST_TIMEOUT, told) from None
