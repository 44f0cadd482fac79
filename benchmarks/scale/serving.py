"""1 to 256 replicas over one corpus, each with memory and disk for a part of its KV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.scale.outcome import Outcome, outcome
from benchmarks.scale.parameters import Cluster, Service
from benchmarks.scale.policies import ByMemory, Policy, TwoChoices
from benchmarks.scale.prompts import InventedTopics, Prompts
from benchmarks.scale.routing import mean_device_s
from benchmarks.scale.simulation import simulate
from fusionrag_integrations.bench.throughput.workload import poisson

LONG = InventedTopics(topics=80, chunks_a_topic=50, retrieved=10, chunk_tokens=1024)
"""4,000 chunks, of which ten are in a prompt of about 10,000 tokens."""

POLICIES: Mapping[str, Callable[[], Policy]] = {
    "two choices": TwoChoices,
    "ours": ByMemory,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """memory, disk: of each replica, as shares of all KV. load: of the devices' time, without
    waiting for KV. requests: for each replica.
    """

    replicas: Sequence[int] = (1, 2, 4, 16, 64, 256)
    memory: float = 0.0625
    disk: float = 0.25
    load: float = 0.5
    requests: int = 150
    seed: int = 0


def serve(
    prompts: Prompts, reuse: Service, full_attention: Service, plan: Plan
) -> Iterator[dict[str, Any]]:
    """A row a number of replicas and a policy; full attention, which needs no KV, by two choices.

    Each gets as many requests a second as make its devices busy for `load` of the time.
    """
    for replicas in plan.replicas:
        for name, make in POLICIES.items():
            yield _row(name, replicas, prompts, reuse, make(), plan)
        yield _row("full attention", replicas, prompts, full_attention, TwoChoices(), plan)


def simulated(
    cluster: Cluster, prompts: Prompts, a_second: float, plan: Plan, policy: Policy
) -> Outcome:
    """What a cluster gives under so many requests a second; a real one can be held against it."""
    count = plan.requests * cluster.replicas
    arrivals = poisson(count, a_second, plan.seed, 2)
    return outcome(simulate(cluster, prompts.drawn(count, plan.seed), arrivals, policy))


def _row(
    name: str, replicas: int, prompts: Prompts, service: Service, policy: Policy, plan: Plan
) -> dict[str, Any]:
    nbytes = prompts.tokens * service.bytes_a_token
    cluster = Cluster(replicas, plan.memory * nbytes, plan.disk * nbytes, service)
    device_s = mean_device_s(service, prompts.drawn(plan.requests, plan.seed))
    offered = plan.load * replicas / device_s
    found = simulated(cluster, prompts, offered, plan, policy)
    return {"policy": name, "replicas": replicas, "offered_per_s": offered, **asdict(found)}
