"""Ray, at an address or started on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
    # It would take SIGTERM for a crash of Ray's, and abort. Python's own is on in workers.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
}


def loaded() -> Any:
    """The module `ray`, which reads the environment when it is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


@contextmanager
def cluster(address: str | None, **options: Any) -> Iterator[None]:
    """Ray, at an address or started here and ended afterwards. options: of `ray.init`.

    What interrupts this while Ray starts is raised once it has started and ended.
    Raises `InvalidInputError` where there is none at the address.
    """
    started: dict[str, Any] = {
        "address": "local",  # not a cluster that the environment names
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE,
    }
    given = started if address is None else {"address": address}
    logging.getLogger("ray._private.worker").addFilter(_is_news)
    # In a thread of its own, which no signal interrupts: what is half started can't be ended, and
    # in the main thread Ray would handle SIGTERM itself. It lasts as long as Ray's processes, which
    # end with the thread that has started them.
    with ThreadPoolExecutor(1, "fusionrag-ray") as thread:
        ray = thread.submit(loaded).result()  # and the thread is there, before Ray starts
        try:
            _check_answers(address or "")
            how = {"logging_level": logging.WARNING} | given | options
            thread.submit(ray.init, **how).result()
        except (OSError, OverflowError, ValueError) as error:
            raise InvalidInputError(
                f"There is no Ray to connect to at {address!r}: {error}. Give the address of a "
                "cluster that runs, or none to start Ray here. One that asks for a token needs "
                "RAY_AUTH_MODE=token in the environment."
            ) from error
        except (KeyboardInterrupt, SystemExit):  # of a signal: what has started meanwhile is ended
            thread.submit(ray.shutdown).result()
            raise
        try:
            yield
        finally:
            thread.submit(ray.shutdown).result()


def _is_news(record: logging.LogRecord) -> bool:
    """Not what Ray says of another thread than the main one."""
    return "SIGTERM handler is not set" not in str(record.msg)


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
