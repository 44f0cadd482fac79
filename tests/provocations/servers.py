"""Components over a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

import fusionrag_integrations.langchain as lc
import fusionrag_integrations.llama_index as li
from fusionrag_integrations.adapters.remote import RemoteEngine
from tests.provocations.world import Provocation, Provoked, World

provoked = Provoked()
LOST = "The replica that had this request was lost; ask again."
URL = "http://localhost:8000"
EVENTS = {"content-type": "text/event-stream"}


def complete() -> None:
    li.FusionRAGLLM(base_url=URL).complete("Where?")


def answer() -> None:
    RemoteEngine(URL).answer("Where?")


def retrieve() -> None:
    lc.FusionKVRetriever(base_url=URL).invoke("Where?")


def answered(
    status: int, content: Any, ask: Callable[[], object] = complete, **given: Any
) -> Provocation:
    """A question to a server that answers so."""

    def asked(world: World) -> None:
        def handle(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
            kind = "json" if isinstance(content, dict) else "text"
            return httpx.Response(status, **{kind: content}, **given)

        world.patch.setattr(httpx.HTTPTransport, "handle_request", handle)
        ask()

    return asked


def failing(error: type[httpx.TransportError]) -> Provocation:
    """A question to a server whose connection fails so."""

    def ask(world: World) -> None:
        def fail(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
            raise error("connection refused")

        world.patch.setattr(httpx.HTTPTransport, "handle_request", fail)
        retrieve()

    return ask


def refused(status: int, message: str, **headers: str) -> Provocation:
    """A question that the server refuses."""
    return answered(status, {"error": {"message": message}}, headers=headers)


def closed(world: World) -> None:
    with lc.ChatFusionRAG(base_url=URL) as chat:
        pass
    chat.get_token_ids("Where?")


provoked.each(
    {
        "The server at ... can't be reached, or broke off: ...": failing(httpx.ConnectError),
        "The server at ... didn't answer in time (...).": failing(httpx.ReadTimeout),
        "The server at ... broke off before its answer was complete; ask again.": answered(
            200, "data: [DONE]\n\n", answer, headers=EVENTS
        ),
        "base_url is ...; give a server's address, ...": lambda w: lc.FusionRAGLLM(
            base_url="localhost:8000"
        ),
        "The api_key, or FUSIONRAG_API_KEY, holds characters that no key has; ...": lambda w: (
            lc.FusionRAGLLM(base_url=URL, api_key="a\nkey")
        ),
        "... was answered by .... Is a FusionRAG server at base_url?": answered(502, "Bad"),
        "... gave no JSON; is a FusionRAG server at base_url?": answered(200, "<html>", retrieve),
        "The server at ... doesn't describe its model; ...": answered(
            200, {"data": []}, lambda: lc.ChatFusionRAG(base_url=URL).bind_tools([])
        ),
        "The server's answer isn't in the form that is expected; ...": answered(
            200, "data: {}\n\n", answer, headers=EVENTS
        ),
        "The connection to ... was closed here; make the component again to use it.": closed,
        "Give an API key: Authorization: Bearer KEY.": refused(
            401, "Give an API key: Authorization: Bearer KEY."
        ),
        "This API key is not known here.": refused(401, "This API key is not known here."),
        "This key may not use the scope ....": refused(
            403, "This key may not use the scope 'board'."
        ),
        "Too many requests are waiting; ask again later.": refused(
            429, "Too many requests are waiting; ask again later.", **{"Retry-After": "60"}
        ),
        LOST: answered(
            200,
            f"data: {json.dumps({'error': {'message': LOST, 'code': 'replica_lost'}})}\n\n",
            answer,
            headers=EVENTS,
        ),
    }
)
