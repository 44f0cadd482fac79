"""Ray's router for the replicas: requests go where their KV is in memory. Imported by Ray alone."""

from __future__ import annotations

from collections import defaultdict
from math import inf
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from fusionrag_integrations.ray.memory import Memory
from fusionrag_integrations.ray.routing import ReplicaState, rank

# What replicas tell: packed keys, how often KV was used, and how many requests they take.
HELD, USES, ROOM = "held", "uses", "room"


class ChunkRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Ranks the replicas for each request by `routing.rank`.

    The KV that a request needs is its argument `needed`: keys with their tokens.
    """

    def initialize_state(self, **given: Any) -> None:
        """Begin without knowing any replica."""
        self._memory: defaultdict[str, Memory] = defaultdict(Memory)
        self._told: dict[str, int] = {}  # which report of a replica was read last
        self._room: dict[str, int] = {}
        self._under_way: defaultdict[str, set[str]] = defaultdict(set)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray has found replicas started or ended, or told something new."""
        super().update_replicas(replicas)
        stats = {r.replica_id.unique_id: r.routing_stats or {} for r in replicas}
        for of_replicas in (self._memory, self._under_way):
            for name in of_replicas.keys() - stats:
                del of_replicas[name]
        for name, told in stats.items():
            if HELD in told and self._told.get(name) != told[USES]:
                self._memory[name].report(told[HELD])
        self._room = {name: told[ROOM] for name, told in stats.items() if ROOM in told}
        self._told = {name: told[USES] for name, told in stats.items() if HELD in told}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replicas in the order in which the request tries them."""
        needed: dict[str, int] = {}
        if pending_request is not None:
            needed = pending_request.kwargs.get("needed", {})
            pending_request.routing_context.should_backoff = True  # where all are full
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        states = [
            ReplicaState(
                name, len(self._under_way[name]), self._memory[name], self._room.get(name, inf)
            )
            for name in replicas
        ]
        return [[replicas[name]] for name in rank(needed, states)]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """A replica has taken the request."""
        name = replica_id.unique_id
        self._under_way[name].add(pending_request.metadata.internal_request_id)
        self._memory[name].sent(pending_request.kwargs.get("needed", {}))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A request has ended, however it did."""
        self._under_way[replica_id.unique_id].discard(internal_request_id)
