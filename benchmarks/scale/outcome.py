"""What a simulated run says: hit rates, waits, requests a second."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from benchmarks.scale.replica import TIERS
from benchmarks.scale.simulation import Run

WARM_UP = 0.4
"""The share of requests that fill the tiers first, and aren't counted."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the requests behind the warm-up.

    hits: the share of chunk tokens by the tier that had them. wait_s: for the device, the mean.
    requests_per_s: answered, from the first arrival to the last end. utilisation: of all devices,
    over the whole run. busiest: requests of the replica that got most, over the mean.
    """

    requests: int
    hits: dict[str, float]
    ttft_p50_s: float
    ttft_p99_s: float
    wait_s: float
    requests_per_s: float
    utilisation: float
    busiest: float


def outcome(run: Run, warm_up: float = WARM_UP) -> Outcome:
    """Figures of a run."""
    counted = run.requests[int(len(run.requests) * warm_up) :]
    found: Counter[str] = Counter()
    for request in counted:
        found.update(request.found or {})
    tokens = max(sum(found.values()), 1)
    ttft = np.array([request.first_token - request.arrived for request in counted])
    waits = np.array([request.started - request.ready for request in counted])
    lasted = max(r.ended for r in run.requests) - run.requests[0].arrived
    took = max(request.ended for request in counted) - counted[0].arrived
    by_replica = Counter(request.replica for request in counted)
    return Outcome(
        requests=len(counted),
        hits={tier: found[tier] / tokens for tier in TIERS},
        ttft_p50_s=float(np.median(ttft)),
        ttft_p99_s=float(np.quantile(ttft, 0.99)),
        wait_s=float(waits.mean()),
        requests_per_s=len(counted) / took,
        utilisation=sum(run.busy_s.values()) / (lasted * len(run.busy_s)),
        busiest=max(by_replica.values()) * len(run.busy_s) / len(counted),
    )
