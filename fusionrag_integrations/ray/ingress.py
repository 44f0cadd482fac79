"""The one endpoint before the replicas: it checks requests and passes them on. Loads no model."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from fusionrag_integrations.ray.finding import KVFinder
from fusionrag_integrations.ray.relay import Relay
from fusionrag_integrations.ray.settings import EngineSettings
from fusionrag_integrations.server.entrance import Entrance
from fusionrag_integrations.server.gate import Gate
from fusionrag_integrations.server.keys import Keys
from fusionrag_integrations.server.limits import Limits
from fusionrag_integrations.server.records import Record, log_as_json
from fusionrag_integrations.server.traffic import Traffic

REQUEST_ID = b"x-request-id"  # Ray's proxy gives each request one, and answers with it


class Application:
    """What Ray serves: each request has the id that Ray's proxy gave it."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _live(receive, send)
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

    def __init__(
        self,
        engine: EngineSettings,
        keys: Keys | None,
        limits: Limits,
        deployed: str,
        replicas: Any,
    ) -> None:
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
        self._deployed = deployed
        self._limits = limits
        self._traffic = Traffic()
        self._hurry = False
        self._finder = KVFinder.open(engine.store, engine.refresh)
        relay = Relay(replicas, self._finder, limits, losses)
        self._gate = Gate(relay, Entrance(keys, limits, self._traffic), _ended)

    def __serve_build_asgi_app__(self) -> Any:
        """The application that Ray serves."""
        return Application(self._gate)

    async def close(self, deployed: str) -> bool:
        """Let nobody in, and wait for requests under way, as `Traffic.end`.

        Returns False, and does nothing, where another deployment has replaced this one.
        """
        if deployed != self._deployed:
            return False
        await self._traffic.end(self._limits.grace_seconds, hurry=lambda: self._hurry)
        return True

    async def hurry(self) -> None:
        """Don't wait any longer."""
        self._hurry = True

    def __del__(self) -> None:
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
