"""A replica: an engine with the server's own application, asked through Ray instead of a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.ray.memory import pack
from fusionrag_integrations.ray.passing import Head, Piece, PlainRequest, replies
from fusionrag_integrations.ray.settings import EngineSettings
from fusionrag_integrations.server.keys import Keys
from fusionrag_integrations.server.limits import Limits
from fusionrag_integrations.store.objects.opening import is_url
from fusionrag_integrations.support.beating import Beating


class EngineReplica:
    """Answers requests with an engine of its own, as `server.Server` does."""

    def __init__(self, engine: EngineSettings, keys: Keys | None, limits: Limits) -> None:
        from fusionrag_integrations.server import create_app
        from fusionrag_integrations.server.records import log_as_json
        from fusionrag_integrations.support.arenas import share_arenas

        share_arenas()
        log_as_json()
        self._opened = ExitStack()
        self._engine = self._opened.enter_context(engine.open())
        if is_url(engine.store):
            beating = Beating("fusionrag-refresh", engine.refresh, self._engine.refresh)
            self._opened.enter_context(beating)
        # What a search has found is loaded by the replica that the prompt will go to.
        self._room = limits.at_once + limits.queue
        self._app = create_app(
            self._engine, keys=keys, limits=limits, prefetch=lambda handles: None
        )

    async def reply(self, request: PlainRequest, needed: Mapping[str, int]) -> AsyncIterator[Piece]:
        """The reply to a request, in pieces. needed: for the router alone."""
        async for piece in replies(self._app, request):
            yield piece

    async def whole(self, request: PlainRequest) -> tuple[str, Head, bytes]:
        """This replica's name, and the reply to a request once it is complete."""
        from ray import serve

        pieces = [piece async for piece in replies(self._app, request)]
        (head,) = (piece for piece in pieces if isinstance(piece, Head))
        body = b"".join(piece for piece in pieces if isinstance(piece, bytes))
        return serve.get_replica_context().replica_id.unique_id, head, body

    async def prefetch(self, handles: Sequence[KVHandle], needed: Mapping[str, int]) -> None:
        """Load the KV of chunks that a prompt will contain. needed: for the router alone."""
        await asyncio.to_thread(self._engine.prefetch, handles)

    async def register(self, texts: Sequence[str], scope: str) -> None:
        """Register texts that another replica has looked up, as `FusionEngine.register_texts`."""
        await asyncio.to_thread(self._engine.register_texts, texts, scope=scope)

    async def record_routing_stats(self) -> dict[str, Any]:
        """What the router is to know; Ray asks now and then."""
        held = await asyncio.to_thread(self._engine.kv.memory_keys)
        found = self._engine.metrics()
        uses = sum(tier.hits for tier in (found.device, found.host, found.disk))
        return {"held": pack(held), "uses": uses, "room": self._room}

    def check_health(self) -> None:
        """Raises where the engine can't be used any more, so that Ray replaces the replica."""
        self._engine.pipeline.check_open()
        self._engine.model.check_usable()

    def __del__(self) -> None:
        """Ray's way to end a replica, once its requests have finished."""
        self._opened.close()
