"""A Chroma server in a process of its own, which can be killed and started again."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import chromadb

PATIENCE = 60  # seconds until the server answers
CHROMA = Path(sys.executable).with_name("chroma")


class ChromaServer:
    """On a port of the loopback, with files in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once it answers; at once where it runs already."""
        if self._process is not None:
            return
        command = [CHROMA, "run", "--path", self._directory, "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = monotonic() + PATIENCE
        while True:
            try:
                with self.client() as client:
                    client.heartbeat()
                return
            except ValueError:  # what Chroma raises where it can't connect
                assert self._process.poll() is None, "the server has ended"
                assert monotonic() < deadline, "the server doesn't answer"
                sleep(0.05)

    def kill(self) -> None:
        """As a crash would end it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> Any:
        return chromadb.HttpClient(host="127.0.0.1", port=self.port)


@contextmanager
def chroma_server(directory: Path) -> Iterator[ChromaServer]:
    server = ChromaServer(directory)
    try:
        server.start()
        yield server
    finally:
        server.kill()
