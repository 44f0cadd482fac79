"""Running the server until it is told to end; then nobody new is let in, and answers finish."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import FrameType

import uvicorn

from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.server.app import create_app
from fusionrag_integrations.server.keys import Keys
from fusionrag_integrations.server.limits import Limits
from fusionrag_integrations.server.service import Service
from fusionrag_integrations.server.traffic import CANCEL_SECONDS


class Server(uvicorn.Server):
    """Serves an engine, which stays open at its end.

    SIGTERM and SIGINT, in the main thread, or `should_exit` end it: requests get 503 from then on,
    those under way have `Limits.grace_seconds`, and are told so if they are broken off; a second
    signal ends them at once.
    """

    def __init__(
        self,
        engine: FusionEngine,
        *,
        keys: Keys | None = None,
        limits: Limits | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """keys, limits: as in `create_app`. on_ready: called once requests are accepted."""
        self._on_ready = on_ready
        app = create_app(engine, keys=keys, limits=limits)
        service: Service = app.state.service
        self._entrance = service.entrance
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                access_log=False,  # the application's own is
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=CANCEL_SECONDS,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Uvicorn would raise the signal again at the end, before the engine is closed."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept requests."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Requests are still accepted while others finish: they are told that the server closes."""
        seconds = self._entrance.limits.grace_seconds
        await self._entrance.traffic.end(seconds, hurry=lambda: self.force_exit)
        await super().shutdown(sockets)


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at an address, where nothing listens yet. port: 0 for any that is free.

    Raises `InvalidInputError` for an address that can't be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        made = socket.socket(family)
        with closing(made):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            yield made
    except OSError as error:
        raise InvalidInputError(
            f"Can't listen at {host}, port {port}: {error.strerror or error}. Give another --host "
            "or --port."
        ) from error
