"""The server as an ASGI application: OpenAI's protocol, and what this package adds to it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import FusionRAGError
from fusionrag_integrations.server import retrieving
from fusionrag_integrations.server.answering import respond
from fusionrag_integrations.server.bodies import ChatBody, CompletionBody
from fusionrag_integrations.server.entrance import HEALTH
from fusionrag_integrations.server.errors import ApiError, api_error, is_told, no_model, not_allowed
from fusionrag_integrations.server.facts import TokenizeBody, model_facts, tokenized
from fusionrag_integrations.server.forms import ChatForm, TextForm
from fusionrag_integrations.server.gate import Gate
from fusionrag_integrations.server.keys import Caller, Keys
from fusionrag_integrations.server.limits import Limits
from fusionrag_integrations.server.service import Prefetch, Service

GET = ["GET", "HEAD"]  # FastAPI adds no HEAD by itself


def create_app(
    engine: FusionEngine,
    *,
    keys: Keys | None = None,
    limits: Limits | None = None,
    prefetch: Prefetch | None = None,
) -> FastAPI:
    """An ASGI application that answers by an engine, which stays open at its end.

    keys: who may ask; without them everybody may do everything. prefetch: called with handles of
    chunks that were searched for, so that their KV is loaded; by default the engine's. Its
    `state.service` counts the requests under way.
    """
    service = Service.of(engine, keys, limits or Limits(), prefetch or engine.prefetch)
    # No pages of its own: FastAPI's load scripts from elsewhere.
    app = FastAPI(title="fusionrag", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.add_middleware(Gate, entrance=service.entrance, ended=service.ended)
    for kind in (ApiError, FusionRAGError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _refuse)
    _add_answers(app, service)
    _add_documents(app, service)
    _add_facts(app, service)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    if not is_told(error):
        request.state.record.log_failure(error)
    return api_error(error).response()


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.record.who
    return caller


Who = Annotated[Caller, Depends(_caller)]


def _writer(who: Who) -> Caller:
    who.check_may_write()
    return who


Writer = Annotated[Caller, Depends(_writer)]


def _add_answers(app: FastAPI, service: Service) -> None:
    model = service.engine.model_name

    @app.post("/v1/chat/completions")
    async def chat(request: Request, who: Who, body: ChatBody) -> Response:
        called = body.tools_given() if body.parse_calls else ()
        form = ChatForm(model, body.include_usage, called)
        return await respond(service, request, who, body, form)

    @app.post("/v1/completions")
    async def completion(request: Request, who: Who, body: CompletionBody) -> Response:
        return await respond(service, request, who, body, TextForm(model, body.include_usage))


def _add_documents(app: FastAPI, service: Service) -> None:
    engine = service.engine

    @app.post("/v1/retrieve")
    async def retrieve(who: Who, body: retrieving.RetrieveBody) -> Response:
        async with service.lookups.place(who):
            found = await engine.store.threads.run(retrieving.retrieve, service, who, body)
        # Metadata may hold numbers that JSON doesn't have.
        return Response(to_json(found, inf_nan_mode="null"), media_type="application/json")

    @app.post("/v1/documents")
    async def add(who: Writer, body: retrieving.DocumentsBody) -> Response:
        return JSONResponse(await retrieving.add(service, who, body))

    @app.api_route("/v1/documents", methods=GET)
    async def listed(who: Who, page: Annotated[retrieving.PageOfDocuments, Query()]) -> Response:
        async with service.lookups.place(who):
            found = await engine.store.threads.run(retrieving.listed, engine, who, page)
        return JSONResponse(found)

    @app.delete("/v1/documents/{document:path}")
    async def delete(
        who: Writer, document: str, given: Annotated[retrieving.OfScope, Query()]
    ) -> Response:
        return JSONResponse(await retrieving.delete(service, who, document, given.scope))


def _add_facts(app: FastAPI, service: Service) -> None:
    engine = service.engine

    @app.api_route("/v1/models", methods=GET)
    async def models() -> Response:
        found = await engine.store.threads.run(model_facts, engine)
        return JSONResponse({"object": "list", "data": [found]})

    @app.api_route("/v1/models/{name:path}", methods=GET)
    async def model(name: str) -> Response:
        if name != engine.model_name:
            raise no_model(name, engine.model_name)
        return JSONResponse(await engine.store.threads.run(model_facts, engine))

    @app.post("/v1/tokenize")
    async def tokenize(who: Who, body: TokenizeBody) -> Response:
        async with service.lookups.place(who):
            return JSONResponse(await engine.threads.run(tokenized, engine, who, body))

    @app.api_route(HEALTH, methods=GET)
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.api_route("/metrics", methods=GET)
    async def metrics(who: Who) -> Response:
        if not who.may_measure:
            raise not_allowed("This key may not read metrics, which are of everybody.")
        text = await engine.store.threads.run(service.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4")
