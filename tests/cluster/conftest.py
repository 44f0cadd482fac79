"""Servers in processes of their own, on this machine's loopback."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.objects.opening import open_objects
from tests.long.conftest import report
from tests.store.published.conftest import model, opened

__all__ = ["model", "opened", "report"]

SECONDS = 30.0  # for a server to start


class S3Server:
    """Moto's: an S3 API whose buckets are in its process's memory."""

    def __init__(self) -> None:
        self.port = _free_port()
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


def bucket() -> str:
    """The URL of a new one."""
    import fsspec

    name = f"bucket-{uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def s3(s3_server: S3Server, cache: Path) -> str:
    """The URL of a bucket of the test's own."""
    return bucket()


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


@pytest.fixture(scope="module")
def ray_address(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Ray on this machine. Workers inherit the environment that is set here."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSIONRAG_CACHE", str(tmp_path_factory.mktemp("workers")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "120")
        patch.setenv("RAY_worker_niceness", "0")  # other tests may run at the same time
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(
            address="local",
            num_cpus=4,
            object_store_memory=100 << 20,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def ray_port(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Ray on this machine, which listens for HTTP at this port of the loopback address."""
    from fusionrag_integrations.ray import cluster, deploying

    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short,  # for sockets' paths
    ):
        patch.setenv("FUSIONRAG_CACHE", str(tmp_path_factory.mktemp("replicas-cache")))
        with cluster.cluster(None, num_cpus=8, _temp_dir=short):
            port = _free_port()
            deploying.listen("127.0.0.1", port)
            yield port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
