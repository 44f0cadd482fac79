"""Ray at an address, or started on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from fusionrag_integrations.errors import FusionRAGError, InvalidInputError
from fusionrag_integrations.ray.cluster import cluster, loaded, resources
from fusionrag_integrations.ray.indexing.settings import Workers

logger = logging.getLogger(__name__)

NEEDED = ("ray", "pandas", "pyarrow")  # of the extra


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
    with _connection(address) as may_grow:
        import ray

        try:
            _check_room(workers, may_grow=may_grow)
            yield
        except ray.exceptions.RayError as error:
            raise FusionRAGError(
                f"Ray gave up: {error}. What was stored is kept: run this again to go on. Where a "
                "worker is killed for its memory, give fewer workers a machine."
            ) from error


@contextmanager
def _connection(address: str | None) -> Iterator[bool]:
    """Whether the cluster may be one that grows."""
    if loaded().is_initialized():
        yield True
        return
    with cluster(address, logging_level=logging.ERROR, log_to_driver=False):
        import_module("ray.data")  # which sets its level
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # this package tells of progress
        yield address is not None


def _check_room(workers: Workers, *, may_grow: bool) -> None:
    cpus, gpus = resources()
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
