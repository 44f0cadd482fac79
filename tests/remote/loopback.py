"""ASGI applications served on a loopback port of their own, from a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from tests.waiting import until

PATIENCE = 30  # seconds, after which a test fails
# Marks tests whose server is on this machine.
LOOPBACK = [
    pytest.mark.enable_socket,
    pytest.mark.allow_hosts(["127.0.0.1"]),
]
Application = Callable[..., Awaitable[None]]


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The application's address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


def event(**content: Any) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(content)}\n\n".encode()


@dataclass(frozen=True)
class Reply:
    """What a scripted server answers: a body in parts. cut: whether it breaks off after them."""

    status: int = 200
    parts: Sequence[bytes] = (b"{}",)
    headers: Sequence[tuple[bytes, bytes]] = ((b"content-type", b"application/json"),)
    cut: bool = False

    @classmethod
    def error(cls, status: int, message: str, code: str | None = None, **headers: str) -> Reply:
        """In OpenAI's form."""
        body = json.dumps({"error": {"message": message, "type": None, "code": code}})
        others = [(name.encode(), value.encode()) for name, value in headers.items()]
        return cls(status, [body.encode()], [(b"content-type", b"application/json"), *others])

    @classmethod
    def stream(cls, *events: bytes, cut: bool = False) -> Reply:
        """Server-sent events."""
        return cls(200, events, [(b"content-type", b"text/event-stream")], cut)


_STORE = {"signature": "s", "revision": 1}
_FACTS = {"context_window": 99, "has_chat_template": True, "supports_tools": False, "store": _STORE}
MODEL = Reply(parts=[json.dumps({"data": [{"id": "scripted", "fusionrag": _FACTS}]}).encode()])


@dataclass
class Script:
    """An application that gives replies one after the other, the last one again and again.

    model: what it says of its model. asked: path, headers and body of all other requests. clients:
    the ports that all came from.
    """

    replies: list[Reply]
    model: Reply = MODEL
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    clients: list[int] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.clients.append(scope["client"][1])
        if scope["path"] == "/v1/models":
            return await _send(self.model, send)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append((scope["path"], headers, json.loads(body) if body else None))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        await _send(reply, send)


async def _send(reply: Reply, send: Any) -> None:
    headers = list(reply.headers)
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    for part in reply.parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    if reply.cut:
        raise ConnectionError("The script breaks off here.")
    await send({"type": "http.response.body", "body": b""})
