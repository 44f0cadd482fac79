"""Other routers for the same replicas. Imported by Ray alone."""

from __future__ import annotations

import json
import random
from typing import Any

from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router import (
    PrefixCacheAffinityRouter,
)
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class Random(RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Any replica, whatever it does."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        return [[random.choice(candidate_replicas)]]


class PrefixAffinity(PrefixCacheAffinityRouter):  # type: ignore[misc]
    """Ray's for vLLM with its own defaults, told where our requests have their prompts."""

    def _extract_text_from_request(self, pending_request: PendingRequest) -> str:
        given: Any = json.loads(pending_request.args[0].body or b"{}")
        return str(given.get("prompt", ""))
