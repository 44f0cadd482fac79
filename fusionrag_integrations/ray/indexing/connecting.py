"""Ray at an address, or started on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from fusionrag_integrations.errors import FusionRAGError, InvalidInputError
from fusionrag_integrations.ray.indexing.settings import Workers

logger = logging.getLogger(__name__)

NEEDED = ("ray", "pandas", "pyarrow")  # of the extra
OBJECT_STORE = 256 << 20  # bytes, for batches on their way; what finds no room goes to the disk
LOOPBACK = "127.0.0.1"
# Ray tells nobody of its use, and has time to start on a busy machine.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}


@contextmanager
def connected(address: str | None, workers: Workers) -> Iterator[None]:
    """Ray with room for these workers, ended afterwards if it was started here.

    address: host:port of a cluster to which this machine belongs, or "auto" for the one that runs
    here. None starts Ray on this machine. Where this process is connected already, that is used.
    Raises `InvalidInputError` where there is no cluster at the address, or no room, and
    `FusionRAGError` for what Ray raises meanwhile.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise InvalidInputError(
            f"Ingest on Ray needs {', '.join(missing)}: install the extra, "
            "pip install 'fusionrag-integrations[ray]'."
        )
    if address is not None and "://" in address:
        raise InvalidInputError(
            f"{address!r} names a Ray client, over which datasets don't run. Run this on a machine "
            "of the cluster, for example by `ray job submit`, and give 'auto'."
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    was_connected = ray.is_initialized()
    if not was_connected:
        _connect(address)
    try:
        _check_room(workers, may_grow=was_connected or address is not None)
        yield
    except ray.exceptions.RayError as error:
        raise FusionRAGError(
            f"Ray gave up: {error}. What was stored is kept: run this again to go on. Where a "
            "worker is killed for its memory, give fewer workers a machine."
        ) from error
    finally:
        if not was_connected:
            ray.shutdown()


def _connect(address: str | None) -> None:
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # progress is told of by this package

    here: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE,
        "_node_ip_address": LOOPBACK,  # no other machine joins, so none is listened to
    }
    try:
        ray.init(
            logging_level=logging.ERROR,
            log_to_driver=False,
            **(here if address is None else {"address": address}),
        )
    except (ConnectionError, ValueError) as error:
        raise InvalidInputError(
            f"There is no Ray to connect to at {address!r}: {error}. Give the address of a cluster "
            "that runs, or none to start Ray here."
        ) from error


def _check_room(workers: Workers, *, may_grow: bool) -> None:
    import ray

    there = ray.cluster_resources()
    cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    wanted = f"{workers.count} workers with {workers.cpus} CPUs and {workers.gpus:g} GPUs each"
    if workers.count * workers.cpus <= cpus and workers.count * workers.gpus <= gpus:
        return
    if not may_grow:
        raise InvalidInputError(
            f"There is no room here for {wanted}: this machine has {cpus:g} CPUs and {gpus:g} "
            "GPUs. Give fewer or smaller workers, or the address of a larger cluster."
        )
    logger.warning(
        "The cluster has %g CPUs and %g GPUs now, less than %s need: it waits until it has.",
        *(cpus, gpus, wanted),
    )
