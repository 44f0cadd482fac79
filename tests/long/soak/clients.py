"""Requests by HTTP: read to their end, or by clients that are gone before it."""

from __future__ import annotations

import json
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from tests.long.soak.cases import Case

CLIENT = Path(__file__).with_name("client.py")
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what is closed is reset
PATIENCE = 300  # seconds until a client counts as hanging
LATEST = 0.3  # seconds after which a client goes that reads nothing


class Clients:
    """Clients of the server at a port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    def read(self, case: Case, *, stream: bool) -> tuple[str, dict[str, Any]]:
        """An answer's text, and the server's report of it."""
        with self._connection() as connection:
            response = self._ask(connection, case, stream=stream)
            assert response.status == 200, response.read()
            if not stream:
                whole = json.loads(response.read())
                return whole["choices"][0]["text"], whole["fusionrag"]
            events = list(_events(response))
        text = "".join(event["choices"][0]["text"] for event in events)
        return text, events[-1]["fusionrag"]

    def reset(self, case: Case, chance: random.Random) -> None:
        """A client that is gone without a word: before its answer, or after some of its events."""
        with self._connection() as connection:
            connection.connect()
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            if chance.random() < 0.5:
                self._send(connection, case, stream=chance.random() < 0.5)
                time.sleep(chance.uniform(0, LATEST))
                return
            with closing(self._ask(connection, case, stream=True)) as response:
                for _ in range(chance.randrange(5)):
                    response.readline()

    def kill(self, case: Case, chance: random.Random) -> None:
        """A client in a process of its own, which is killed."""
        body = json.dumps({**case.body(), "stream": True})
        command = [sys.executable, "-I", "-S", CLIENT, str(self._port), body]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            if chance.random() < 0.3:
                time.sleep(chance.uniform(0, LATEST))
            else:
                for _ in range(1 + chance.randrange(5)):
                    process.stdout.readline()
            process.kill()

    @contextmanager
    def _connection(self) -> Iterator[HTTPConnection]:
        with closing(HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)) as connection:
            yield connection

    def _send(self, connection: HTTPConnection, case: Case, *, stream: bool) -> None:
        body = json.dumps({**case.body(), "stream": stream})
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", body, headers)

    def _ask(self, connection: HTTPConnection, case: Case, *, stream: bool) -> HTTPResponse:
        self._send(connection, case, stream=stream)
        return connection.getresponse()


def _events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream, which must come to its end."""
    lines = [line.removeprefix(b"data: ").strip() for line in response if line.strip()]
    assert lines[-1] == b"[DONE]", lines[-1]
    yield from map(json.loads, lines[:-1])
