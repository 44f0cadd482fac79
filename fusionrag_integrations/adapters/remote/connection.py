"""Requests to a server, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from ssl import SSLContext
from threading import Lock
from time import sleep
from typing import Any

import httpx

from fusionrag_integrations.adapters.remote.failures import ATTEMPTS, pause
from fusionrag_integrations.errors import (
    InvalidInputError,
    ServerError,
    ServerUnreachableError,
    StoreClosedError,
)
from fusionrag_integrations.support.forks import Forkable
from fusionrag_integrations.support.inputs import parse_json, shown
from fusionrag_integrations.support.threads import Closable

KEY_VARIABLE = "FUSIONRAG_API_KEY"
# Seconds. An answer's first piece may wait for those of many others.
TIMEOUT = httpx.Timeout(600.0, connect=10.0)
# Fewer than after which servers drop an idle connection, so that no request is sent on such a one.
IDLE = httpx.Limits(keepalive_expiry=2.0)


class Connection(Forkable, Closable):
    """Connections to one server; each process makes its own, on first use.

    Synchronous requests share a pool. An asynchronous one has a client of its own, because a
    connection belongs to the event loop that made it, and loops come and go.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        """api_key: by default the environment variable FUSIONRAG_API_KEY, where it is set.

        Raises `InvalidInputError` for what is no URL of a server, or no key.
        """
        self.base_url = _server(base_url)
        self.api_key = api_key
        self._closed = False
        self.in_child()
        _headers(api_key)
        super().__init__()

    def __reduce__(self) -> tuple[type[Connection], tuple[str, str | None]]:
        return Connection, (self.base_url, self.api_key)

    def in_child(self) -> None:
        """Leave the parent's connections to it."""
        self._making = Lock()
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close the connections. Streams under way end with their readers. May be called again."""
        with self._making:
            self._closed = True
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of a response. Raises as `open` does."""
        with self.open(method, path, body) as response:
            content = response.read()
        try:
            return parse_json(content)
        except ValueError as error:
            raise ServerError(
                f"{response.request.url} gave no JSON; is a FusionRAG server at base_url?"
            ) from error

    @contextmanager
    def open(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> Iterator[httpx.Response]:
        """A successful response, whose content is to be read from it.

        A server that is busy is asked again, after the time it names. Raises the error that
        `failures` has for other responses, `ServerUnreachableError`, and `StoreClosedError` once
        this is closed.
        """
        sent = _sent(body)
        for attempt in range(ATTEMPTS):
            with self._reported(), self._pooled().stream(method, path, **sent) as response:
                if response.is_success:
                    yield response
                    return
                response.read()
            sleep(pause(response, attempt))

    @asynccontextmanager
    async def aopen(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """`open`, for an event loop."""
        sent = _sent(body)
        for attempt in range(ATTEMPTS):
            self._check_open()
            with self._reported():
                async with (
                    httpx.AsyncClient(**self._options) as client,
                    client.stream(method, path, **sent) as response,
                ):
                    if response.is_success:
                        yield response
                        return
                    await response.aread()
            await asyncio.sleep(pause(response, attempt))

    def _pooled(self) -> httpx.Client:
        with self._making:
            self._check_open()
            if self._client is None:
                self._client = httpx.Client(**self._options, limits=IDLE)
            return self._client

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(
                f"The connection to {self.base_url} was closed here; make the component again to "
                "use it."
            )

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "base_url": self.base_url,
            "headers": _headers(self.api_key),
            "timeout": TIMEOUT,
            "verify": self._certificates,
        }

    @cached_property
    def _certificates(self) -> SSLContext | bool:
        """Read once: that takes longer than many a request."""
        return self.base_url.startswith("https:") and httpx.create_ssl_context()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Errors of the connection as the package's."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise ServerUnreachableError(
                f"The server at {self.base_url} didn't answer in time ({type(error).__name__})."
            ) from error
        except httpx.RequestError as error:
            reason = str(error) or type(error).__name__
            raise ServerUnreachableError(
                f"The server at {self.base_url} can't be reached, or broke off: {reason}. Start it "
                "by `fusionrag serve`, or give the base_url at which it is."
            ) from error


def _sent(body: dict[str, Any] | None) -> dict[str, Any]:
    """A body as JSON. Raises `InvalidInputError` for what JSON has no form for."""
    if body is None:
        return {}
    try:
        content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"A text holds half a surrogate pair, {error.object[error.start]!a}; decode its source "
            "again, or replace that character."
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"What is asked can't be sent to a server as JSON: {error}. Give text, finite numbers, "
            "lists and mappings."
        ) from error
    return {"content": content, "headers": {"Content-Type": "application/json"}}


def _server(base_url: str) -> str:
    """The address without the path `/v1`, with which OpenAI's clients are given it."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        url = httpx.URL()
    known = url.scheme in ("http", "https") and url.host and (url.port or 0) < 1 << 16
    if not known or url.query or url.fragment:
        raise InvalidInputError(
            f"base_url is {shown(base_url)}; give a server's address, 'http://localhost:8000'."
        )
    return base_url.rstrip("/").removesuffix("/v1")


def _headers(api_key: str | None) -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):  # the message doesn't show it
        raise InvalidInputError(
            f"The api_key, or {KEY_VARIABLE}, holds characters that no key has; give the server's."
        )
    return {"Authorization": f"Bearer {key}"}
