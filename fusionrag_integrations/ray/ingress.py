"""The one endpoint before the replicas: it checks requests and passes them on. Loads no model."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from fusionrag_integrations.ray.finding import KVFinder
from fusionrag_integrations.ray.relay import Relay
from fusionrag_integrations.ray.settings import ServingSettings
from fusionrag_integrations.server.entrance import Entrance
from fusionrag_integrations.server.gate import Gate
from fusionrag_integrations.server.records import Record, log_as_json
from fusionrag_integrations.server.traffic import Traffic

REQUEST_ID = b"x-request-id"  # Ray's proxy gives each request one, and answers with it


class Application:
    """What Ray serves: each request has the id that Ray's proxy gave it."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # told as status 403
            return
        given = Headers(scope=scope).get(REQUEST_ID.decode(), "")
        record = Record(request_id=given, method=scope["method"])

        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [h for h in message["headers"] if h[0].lower() != REQUEST_ID]
                message = {**message, "headers": kept}
            await send(message)

        await self._gate({**scope, "state": {"record": record}}, receive, send_without_id)


class Ingress:
    """Ray's application over a handle of the replicas."""

    def __init__(self, settings: ServingSettings, deployed: str, replicas: Any) -> None:
        """deployed: which deployment this belongs to. Raises as `Store.open`."""
        from ray.exceptions import (
            NodeDiedError,
            ObjectLostError,
            OutOfMemoryError,
            RayActorError,
            WorkerCrashedError,
        )
        from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

        losses = (
            *(RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError),
            *(DeploymentUnavailableError, ReplicaUnavailableError),
        )
        log_as_json()
        engine, limits = settings.engine, settings.limits
        self._settings = settings
        self._deployed = deployed
        self._traffic = Traffic()
        self._hurry = False
        self._finder = KVFinder.open(engine.store, engine.refresh)
        relay = Relay(replicas, self._finder, limits, losses)
        self._gate = Gate(relay, Entrance(settings.keys, limits, self._traffic), _ended)

    def __serve_build_asgi_app__(self) -> Any:
        """The application that Ray serves."""
        return Application(self._gate)

    async def what(self) -> tuple[ServingSettings, str]:
        """What is served, and by which deployment."""
        return self._settings, self._deployed

    async def close(self, deployed: str) -> bool:
        """Let nobody in, and wait for requests under way, as `Traffic.end`.

        Returns False, and does nothing, where another deployment has replaced this one.
        """
        if deployed != self._deployed:
            return False
        await self._traffic.end(self._settings.limits.grace_seconds, hurry=lambda: self._hurry)
        return True

    async def hurry(self) -> None:
        """Don't wait any longer."""
        self._hurry = True

    def __del__(self) -> None:
        if hasattr(self, "_finder"):  # which may have failed to open
            self._finder.close()


async def _live(receive: Receive, send: Send) -> None:
    """ASGI's lifespan: nothing is to be done."""
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


def _ended(record: Record) -> None:
    """Log what no replica did."""
    if not record.passed_on:
        record.log()
