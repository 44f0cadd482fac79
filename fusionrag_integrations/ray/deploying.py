"""Starting, replacing and ending what is served on Ray."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any
from uuid import uuid4

from fusionrag_integrations.errors import FusionRAGError, InvalidInputError
from fusionrag_integrations.ray.ingress import Ingress
from fusionrag_integrations.ray.replica import EngineReplica
from fusionrag_integrations.ray.settings import Replicas, ServingSettings
from fusionrag_integrations.server.limits import Limits
from fusionrag_integrations.server.traffic import CANCEL_SECONDS

logger = logging.getLogger(__name__)

APPLICATION = "fusionrag"
STATS_SECONDS = 2.0  # between a replica's reports of what it has in memory
TRIES = 3  # to start a replica
ROUTER = "fusionrag_integrations.ray.router:ChunkRouter"
_QUIET = {"log_level": "WARNING", "enable_access_log": False}  # replicas log requests themselves
_FACTS = 16  # requests beside those that have limits, such as for health, at a replica
_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 5.0  # for the endpoint, behind which it hangs
_LOADING_SECONDS = 3600.0  # that a replica may take to load
_MANY = 1_000  # requests at the endpoint at once, whose bodies may come slowly
_RAISED = re.compile(r"[\w.]+(Error|Exception)\b.*: ")  # a traceback's last line


def listen(host: str, port: int) -> None:
    """Have Ray listen for HTTP. Raises `InvalidInputError` where it does so elsewhere already."""
    from ray import serve
    from ray.serve.context import _get_global_client

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": host, "port": port}, logging_config=_QUIET)
    now = _get_global_client().http_config
    if (now.host, now.port) != (host, port):
        raise InvalidInputError(
            f"Ray serves at {now.host}, port {now.port} on this cluster already, not at {host}, "
            f"port {port}. Give --host {now.host} --port {now.port}."
        )


def deploy(settings: ServingSettings) -> str:
    """Serve on the cluster that this process is connected to; returns once all replicas are ready.

    Where something is served already, its replicas are replaced one after another: each finishes
    its requests first. Returns what `end` needs. Raises `FusionRAGError` where none can start; what
    was served before is then served again, as where this is interrupted.
    """
    deployed = uuid4().hex
    before = _served()
    try:
        _run(settings, deployed)
    except KeyboardInterrupt:
        _restore(before)
        raise
    except Exception as error:  # Ray tells of whatever a replica raised
        why = _why(error)
        _restore(before)
        raise FusionRAGError(
            f"Ray couldn't serve {settings.engine.model!r} from {settings.engine.store}: {why}. "
            "The model, the store and this package must be on every machine, and the cluster needs "
            "room for the replicas."
        ) from error
    return deployed


def _run(settings: ServingSettings, deployed: str) -> None:
    from ray import serve

    serve.run(application(settings, deployed), name=APPLICATION, logging_config=_QUIET)


def _served() -> tuple[ServingSettings, str] | None:
    """What is served now, and by which deployment."""
    from ray import serve

    if APPLICATION not in serve.status().applications:
        return None
    asked = serve.get_app_handle(APPLICATION).what.remote()
    try:
        found: tuple[ServingSettings, str] = asked.result(timeout_s=_ANSWER_SECONDS)
    except TimeoutError:
        logger.warning("What is served now doesn't answer; it can't be restored.")
        return None
    return found


def _restore(before: tuple[ServingSettings, str] | None) -> None:
    from ray import serve

    if before is None:
        serve.delete(APPLICATION)
    else:
        logger.warning("What was served before is served again.")
        _run(*before)


def _why(error: Exception) -> str:
    """What a replica raised at last, as Ray's status has it; else what Ray did."""
    from ray import serve

    served = serve.status().applications.get(APPLICATION)
    deployments = served.deployments.values() if served else ()
    told = [line.strip() for each in deployments for line in each.message.splitlines()]
    raised = [line for line in told if _RAISED.match(line)]
    return (raised[-1] if raised else str(error)).rstrip(".")


def end(deployed: str, hurry: Callable[[], bool] = lambda: False) -> bool:
    """End what `deploy` began: no request is let in, and those under way finish.

    hurry: don't wait. Returns False, and ends nothing, where it has been replaced or ended.
    """
    from ray import serve

    if APPLICATION not in serve.status().applications:
        return False
    handle = serve.get_app_handle(APPLICATION)
    closing = handle.close.remote(deployed)
    latest = inf
    while True:
        try:
            closed: bool = closing.result(timeout_s=_POLL_SECONDS)
            break
        except TimeoutError:
            if hurry() and latest == inf:
                latest = monotonic() + _ANSWER_SECONDS
                handle.hurry.remote()
            if monotonic() > latest:  # it hangs
                closed = True
                break
    if closed:
        serve.delete(APPLICATION)
    return closed


def application(settings: ServingSettings, deployed: str, router: object = ROUTER) -> Any:
    """What `serve.run` takes. router: of the replicas, a class of Ray's or where to import it."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    limits, replicas = settings.limits, settings.replicas
    grace = limits.grace_seconds + CANCEL_SECONDS
    routing = RequestRouterConfig(
        request_router_class=router, request_routing_stats_period_s=STATS_SECONDS
    )
    shared = {
        "graceful_shutdown_timeout_s": grace,
        "graceful_shutdown_wait_loop_s": _POLL_SECONDS,
        "max_constructor_retry_count": TRIES,
    }
    engines = serve.deployment(
        EngineReplica,
        name="replica",
        max_ongoing_requests=_at_most(limits),
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        request_router_config=routing,
        **shared,
        **_scaling(replicas, limits),
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=max(_MANY, _at_most(limits) * replicas.most),
        max_surge_percent=100,  # the next one begins before the last one ends
        ray_actor_options={"num_cpus": 0},
        # The last one ends with its requests, which may wait until the next replicas have loaded.
        **shared | {"graceful_shutdown_timeout_s": _LOADING_SECONDS},
    )
    bound = engines.bind(settings.engine, settings.keys, limits)
    return ingress.bind(settings, deployed, bound)


def _scaling(replicas: Replicas, limits: Limits) -> dict[str, Any]:
    if replicas.least == replicas.most:
        return {"num_replicas": replicas.least}
    return {
        "autoscaling_config": {
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": limits.at_once,
        }
    }


def _at_most(limits: Limits) -> int:
    """Requests that a replica takes: the same as a server alone, which turns others away itself."""
    of_a_kind = limits.at_once + limits.queue
    return 2 * of_a_kind + 1 + limits.queue + _FACTS
