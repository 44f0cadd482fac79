"""Ray, at an address or started on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fusionrag_integrations.errors import InvalidInputError

OBJECT_STORE = 256 << 20  # bytes, for what is on its way; what finds no room goes to the disk
CONNECT_SECONDS = 5.0
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # each request is a line of its own
    # Serve's threads go on after the end, and would have Ray started again.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_raylet_start_wait_time_s": "120",  # on a busy machine
}


@contextmanager
def cluster(address: str | None, **options: Any) -> Iterator[None]:
    """Ray, at an address or started here and ended afterwards. options: of `ray.init`.

    Raises `InvalidInputError` where there is none at the address.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    started: dict[str, Any] = {
        "address": "local",  # not a cluster that the environment names
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE,
    }
    given = started if address is None else {"address": address}
    try:
        _check_answers(address or "")
        ray.init(**{"logging_level": logging.WARNING} | given | options)
    except (OSError, OverflowError, ValueError) as error:
        raise InvalidInputError(
            f"There is no Ray to connect to at {address!r}: {error}. Give the address of a cluster "
            "that runs, or none to start Ray here. One that asks for a token needs "
            "RAY_AUTH_MODE=token in the environment."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises `OSError` where nothing listens at host:port, for which Ray itself waits long."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def resources() -> tuple[float, float]:
    """CPUs and GPUs that Ray has."""
    import ray

    found = ray.cluster_resources()
    return found.get("CPU", 0.0), found.get("GPU", 0.0)
