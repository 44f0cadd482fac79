"""Servers in processes of their own, on this machine's loopback."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.objects.opening import open_objects
from tests.store.published.conftest import model, opened

__all__ = ["model", "opened"]

SECONDS = 30.0  # for a server to start


class S3Server:
    """Moto's: an S3 API whose buckets are in its process's memory."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        ended = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/moto-api/", timeout=1).close()
                return
            except OSError:
                if time.monotonic() > ended:
                    self.stop()
                    raise
                time.sleep(0.05)

    def freeze(self) -> None:
        """It answers nothing from now on, like one whose machine hangs."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.thaw()
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture(scope="package")
def s3_server() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        server = S3Server()
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
        server.stop()


@pytest.fixture
def s3(s3_server: S3Server, cache: Path) -> str:
    """The URL of a bucket of the test's own."""
    import fsspec

    bucket = f"bucket-{uuid4().hex}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture
def url(s3: str) -> str:
    return f"{s3}/some/store"


@pytest.fixture
def objects(url: str) -> Iterator[Objects]:
    found = open_objects(url)
    yield found
    found.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's working copies are."""
    monkeypatch.setenv("FUSIONRAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
