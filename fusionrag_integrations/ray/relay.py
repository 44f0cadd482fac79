"""Passing requests on to the replicas, and their replies back."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from http import HTTPStatus
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from fusionrag_integrations.errors import FusionRAGError
from fusionrag_integrations.ray.finding import KVFinder
from fusionrag_integrations.ray.lookups import Found
from fusionrag_integrations.ray.metrics import merged
from fusionrag_integrations.ray.passing import Head, Piece, PlainRequest
from fusionrag_integrations.server.admission import Admission
from fusionrag_integrations.server.errors import gone, lost
from fusionrag_integrations.server.keys import ANYONE, Caller
from fusionrag_integrations.server.limits import Limits
from fusionrag_integrations.server.records import Record, logger

LOOKUP = "/v1/retrieve"
ATTEMPTS = 3  # at a request whose replica was lost before it replied
DOCUMENTS, METRICS = "/v1/documents", "/metrics"
# Answers and look-ups: they wait for turns, and are counted for keys with a limit of their own.
_LIMITED = ("/v1/chat/completions", "/v1/completions", LOOKUP, "/v1/tokenize", DOCUMENTS)


class Relay:
    """An ASGI application that has each request answered by a replica.

    Here is what replicas can't know of each other: changes of documents are made one at a time, and
    the requests of a key with a limit are counted together.
    """

    def __init__(
        self, replicas: Any, finder: KVFinder, limits: Limits, losses: tuple[type[Exception], ...]
    ) -> None:
        """replicas: Ray's handle of them. losses: errors by which Ray tells that one was lost."""
        self._replicas = replicas
        self._reply = replicas.options(method_name="reply", stream=True)
        self._prefetch = replicas.options(method_name="prefetch")
        self._telling: set[asyncio.Task[None]] = set()
        self._finder = finder
        self._losses = losses
        of_callers: Counter[str] = Counter()
        self._requests = Admission(sys.maxsize, sys.maxsize, of_callers)
        self._changes = Admission(1, limits.queue, of_callers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["state"]["record"]
        caller = record.who or ANYONE
        request = PlainRequest.of(scope, record.request_id, await _body(receive))
        async with self._place(request, caller):
            if request.path == METRICS:
                await self._send_metrics(request, send)
                record.passed_on = True
            elif _changes_documents(request):  # it goes on where its client goes away
                await _to_its_end(self._pass_on(request, caller, record, send))
            else:
                await self._pass_on(request, caller, record, send)

    def _place(self, request: PlainRequest, caller: Caller) -> AbstractAsyncContextManager[None]:
        """Where the request waits and is counted."""
        if _changes_documents(request) and caller.may_write:  # who may not is told so at once
            return self._changes.place(caller)
        return self._requests.place(caller) if request.path in _LIMITED else nullcontext()

    async def _pass_on(
        self, request: PlainRequest, caller: Caller, record: Record, send: Send
    ) -> None:
        """Raises `ApiError` (503) where the replica was lost and no other may try."""
        needed = await asyncio.to_thread(self._needed, request, caller)
        attempts = 1 if _changes_documents(request) else ATTEMPTS
        for _ in range(attempts):
            response = self._reply.remote(request, needed=needed)
            looked_up: list[Piece] = []
            try:
                async for piece in response:
                    record.passed_on = True
                    if request.path == LOOKUP:
                        looked_up.append(piece)
                    await send(_message(piece))
                await send({"type": "http.response.body"})
                self._tell(request, caller, looked_up)
                return
            except self._losses as error:
                logger.warning("A replica was lost. %s", error)
                if record.passed_on:
                    break
            except BaseException:
                response.cancel()
                raise
        record.passed_on = False
        raise lost()

    def _tell(self, request: PlainRequest, caller: Caller, reply: Sequence[Piece]) -> None:
        """Let replicas expect a prompt with what a look-up has found, without waiting for them."""
        if reply and isinstance(reply[0], Head) and reply[0].status == HTTPStatus.OK:
            body = b"".join(piece for piece in reply if isinstance(piece, bytes))
            task = asyncio.create_task(self._expect(request, caller, body))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _expect(self, request: PlainRequest, caller: Caller, body: bytes) -> None:
        found = Found.of(request.body, body)
        try:
            if found.handles:
                await self._prefetch.remote(found.handles, needed=found.needed)
            if found.unknown:
                scopes = json.loads(request.body).get("scopes") or caller.scopes or [""]
                told = self._replicas.broadcast("register", found.unknown, scopes[0])
                await told.results_async()
        except self._losses as error:
            logger.warning("A replica was lost. %s", error)

    def _needed(self, request: PlainRequest, caller: Caller) -> dict[str, int]:
        """Keys of the KV that a request reads; none where that isn't known."""
        if request.method != "POST" or request.path not in _LIMITED[:3]:
            return {}
        try:
            return self._finder.needed(request.body, caller.scopes)
        except FusionRAGError as error:
            logger.warning("Chunks aren't looked for in a request. %s", error)
            return {}

    async def _send_metrics(self, request: PlainRequest, send: Send) -> None:
        """Of all replicas, or the refusal of one."""
        asked = self._replicas.broadcast("whole", request)
        try:
            replies: list[tuple[str, Head, bytes]] = await asked.results_async()
        except self._losses as error:
            raise lost() from error
        if not replies:
            raise lost()
        refusals = [reply for reply in replies if reply[1].status != HTTPStatus.OK]
        _, head, body = [*refusals, *replies][0]
        if head.status == HTTPStatus.OK and request.method == "GET":
            body = merged({name: text.decode() for name, _, text in replies})
            kept = tuple(h for h in head.headers if h[0] != b"content-length")
            head = Head(head.status, (*kept, (b"content-length", str(len(body)).encode())))
        await send(_message(head))
        await send({"type": "http.response.body", "body": body})


async def _to_its_end(call: Coroutine[None, None, None]) -> None:
    """Await a call that isn't broken off, however this is: only then is its place free."""
    task = asyncio.create_task(call)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _changes_documents(request: PlainRequest) -> bool:
    of_documents = request.path == DOCUMENTS or request.path.startswith(f"{DOCUMENTS}/")
    return of_documents and request.method in ("POST", "DELETE")


def _message(piece: Piece) -> Message:
    """As ASGI has it."""
    if isinstance(piece, Head):
        headers = list(piece.headers)
        return {"type": "http.response.start", "status": piece.status, "headers": headers}
    return {"type": "http.response.body", "body": piece, "more_body": True}


async def _body(receive: Receive) -> bytes:
    """A request's whole body. Raises `ApiError` where its client goes away."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise gone()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
