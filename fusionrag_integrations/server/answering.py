"""The endpoints that answer: a request waits for its turn, and ends when its client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, closing
from time import perf_counter
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.server.bodies import AnswerBody
from fusionrag_integrations.server.errors import api_error, gone, is_told, no_model
from fusionrag_integrations.server.events import EVENTS, event
from fusionrag_integrations.server.forms import Form
from fusionrag_integrations.server.keys import Caller
from fusionrag_integrations.server.records import Record
from fusionrag_integrations.server.service import Service
from fusionrag_integrations.serving.answer import AnswerStream
from fusionrag_integrations.serving.settings import AnswerSettings

Result = TypeVar("Result")


class Turn:
    """An answer under way, whose pieces are timed. Its first one is there from the beginning."""

    def __init__(self, stream: AnswerStream, service: Service, record: Record) -> None:
        self._stream = stream
        self._metrics = service.metrics
        self.record = record
        self._first = ""
        self._last_time = 0.0

    async def begin(self) -> None:
        """Compute the prompt and the first piece. Raises as `FusionEngine.answer`."""
        self._first = await anext(self._stream, "")
        self._last_time = perf_counter()
        self.record.ttft_ms = self.record.ms()
        self._metrics.first(self.record.ttft_ms / 1000)

    async def pieces(self) -> AsyncIterator[str]:
        """All pieces, the first one too; afterwards the answer is counted."""
        if self._first:
            yield self._first
        async for piece in self._stream:
            now = perf_counter()
            self._metrics.next(now - self._last_time)
            self._last_time = now
            yield piece
        self.record.note(self._stream.answer)
        self._metrics.answered(self._stream.answer)

    async def whole(self, form: Form) -> dict[str, Any]:
        """The answer in one object."""
        async for _ in self.pieces():
            pass
        return form.whole(self._stream.answer)

    async def events(self, form: Form) -> AsyncIterator[str]:
        """The answer as server-sent events. An error ends them, as an event of its own."""
        try:
            for choice in form.begin():
                yield event(form.chunk(choice))
            async for piece in self.pieces():
                for choice in form.add(piece):
                    yield event(form.chunk(choice))
            for chunk in form.last(self._stream.answer):
                yield event(chunk)
        except Exception as error:  # noqa: BLE001 the status was sent before
            if not is_told(error):
                self.record.log_failure(error)
            yield event(api_error(error).body())
            return
        yield "data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Events, and what is held until they have been sent, or the client has gone."""

    def __init__(self, events: AsyncIterator[str], held: AsyncExitStack) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store"})
        self.headers["content-type"] = f"{EVENTS}; charset=utf-8"
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def respond(
    service: Service, request: Request, caller: Caller, body: AnswerBody, form: Form
) -> Response:
    """Answer a request, whole or as events.

    Raises `ApiError` and as `FusionEngine.answer`, before anything is sent.
    """
    record: Record = request.state.record
    record.stream = body.stream
    settings = await _settings(service.engine, caller, body)
    async with AsyncExitStack() as held:

        async def begin() -> Turn:
            await held.enter_async_context(service.answers.place(caller))
            record.queued_ms = record.ms()
            stream = service.engine.stream(body.prompt_given(), settings)
            turn = Turn(held.enter_context(closing(stream)), service, record)
            await turn.begin()
            return turn

        turn = await unless_gone(request, begin())
        if body.stream:
            return EventStream(turn.events(form), held.pop_all())
        return JSONResponse(await unless_gone(request, turn.whole(form)))


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What work gives; it is cancelled where the client goes away, and `ApiError` is raised."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        raise gone()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _settings(engine: FusionEngine, caller: Caller, body: AnswerBody) -> AnswerSettings:
    """Raises `ApiError` for another model and for scopes that aren't the caller's."""
    if body.model is not None and body.model != engine.model_name:
        raise no_model(body.model, engine.model_name)
    scopes = caller.allowed(body.scopes)
    handles = await engine.store.threads.run(engine.store.handles, body.chunk_ids or (), scopes)
    return body.settings(scopes, handles)
