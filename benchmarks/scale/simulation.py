"""Requests that arrive, wait and are answered by replicas: a simulation of discrete events.

A request is routed when it arrives. Its KV comes through the links of its replica, whatever the
device is doing; then it waits for the device, first come, first served, which prefills it. Its
answer's tokens follow one by one, while the device goes on with others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from benchmarks.scale.parameters import Cluster
from benchmarks.scale.policies import Policy
from benchmarks.scale.prompts import Prompt
from benchmarks.scale.replica import TIERS, Link, Replica
from fusionrag_integrations.ray.routing import ReplicaState


@dataclass(slots=True)
class Request:
    """A request and when things happened to it, in seconds. found: its tokens by tier."""

    prompt: Prompt
    arrived: float
    replica: str = ""
    ready: float = 0.0
    started: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0
    found: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """All requests, in the order of arrival, and what the replicas did.

    busy_s: by replica, how long its device was at work. request_seconds: the number of requests
    under way, summed over time.
    """

    requests: Sequence[Request]
    busy_s: Mapping[str, float]
    request_seconds: float


def simulate(
    cluster: Cluster, prompts: Iterable[Prompt], arrivals: Iterable[float], policy: Policy
) -> Run:
    """Answer each prompt, which arrives at its time; the last answer ends the run.

    The same for the same arguments.
    """
    return _Simulation(cluster, policy).run(
        [Request(prompt, at) for prompt, at in zip(prompts, arrivals, strict=True)]
    )


class _Simulation:
    def __init__(self, cluster: Cluster, policy: Policy) -> None:
        shared = Link(cluster.service.object_shared_bytes_s)
        names = [f"replica-{number}" for number in range(cluster.replicas)]
        self._replicas = {name: Replica(name, cluster, shared) for name in names}
        self._cluster = cluster
        self._policy = policy
        self._reports: dict[str, frozenset[str]] = dict.fromkeys(names, frozenset())
        self._reported_at = float("-inf")

    def run(self, requests: list[Request]) -> Run:
        numbers = count()  # events of one time in the order in which they were planned
        events = [(r.arrived, next(numbers), "arrived", r) for r in requests]  # sorted: a heap
        now = under_way = request_seconds = 0.0
        while events:
            at, _, kind, request = heappop(events)
            request_seconds += under_way * (at - now)
            now = at
            if kind == "arrived":
                under_way += 1
                self._route(request, now)
                heappush(events, (request.ready, next(numbers), "ready", request))
            elif kind == "ready":
                self._compute(request, now)
                heappush(events, (request.ended, next(numbers), "ended", request))
            else:
                under_way -= 1
                replica = self._replicas[request.replica]
                replica.load -= 1
                replica.release(request.prompt)
        busy = {name: replica.busy_s for name, replica in self._replicas.items()}
        return Run(requests, busy, request_seconds)

    def _route(self, request: Request, now: float) -> None:
        request.replica = self._policy.choose(request.prompt.chunks, self._states(now))
        replica = self._replicas[request.replica]
        replica.load += 1
        if self._cluster.service.fetches:
            request.ready, request.found = replica.fetch(request.prompt, now)
        else:
            request.ready, request.found = now, dict.fromkeys(TIERS, 0)

    def _compute(self, request: Request, now: float) -> None:
        replica, service = self._replicas[request.replica], self._cluster.service
        request.started, request.first_token = replica.compute(request.prompt, now)
        answered = request.first_token + request.prompt.output_tokens * service.decode_step_s
        request.ended = max(answered, replica.device_free_at)

    def _states(self, now: float) -> list[ReplicaState]:
        every = self._cluster.report_every_s
        if every and now - self._reported_at >= every:
            self._reports = {name: frozenset(r.memory) for name, r in self._replicas.items()}
            self._reported_at = now
        return [
            ReplicaState(name, r.load, self._reports[name] if every else r.memory)
            for name, r in self._replicas.items()
        ]
