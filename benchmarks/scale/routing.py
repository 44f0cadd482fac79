"""Every policy on the same requests: four replicas, the memory of each a quarter of all KV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import mean
from typing import Any

from benchmarks.scale.other_policies import (
    HotChunksTwice,
    Learned,
    Owner,
    Plain,
    first_chunk,
    longest_chunk,
    main_document,
)
from benchmarks.scale.outcome import Outcome, outcome
from benchmarks.scale.parameters import Cluster, Service
from benchmarks.scale.policies import (
    AtRandom,
    ByMemory,
    Policy,
    PrefixAffinity,
    RoundRobin,
    TwoChoices,
)
from benchmarks.scale.prompts import Prompt, Prompts
from benchmarks.scale.simulation import simulate
from fusionrag_integrations.bench.throughput.workload import poisson

REPLICAS = 4

COMPARED: Mapping[str, Callable[[], Policy]] = {
    "random": AtRandom,
    "round robin": RoundRobin,
    "two choices (Ray's default)": TwoChoices,
    "prefix affinity (Ray's)": PrefixAffinity,
    "prefix affinity, two choices where loads differ by 4": partial(PrefixAffinity, 4),
    "ours": ByMemory,
    "ours, slack 1.25": partial(ByMemory, 1.25),
    "ours, slack 2": partial(ByMemory, 2.0),
    "ours, nothing reported": partial(ByMemory, reported=False),
}
TRIED: Mapping[str, Callable[[], Policy]] = {
    "memory and owners, a bounded load alone": Plain,
    "the same, slack 1.5": partial(Plain, 1.5),
    "a directory of recent choices": partial(Learned, 1.5),
    "owner of the first chunk": partial(Owner, first_chunk, 1.5),
    "owner of the longest chunk": partial(Owner, longest_chunk, 1.5),
    "owner of the main document": partial(Owner, main_document, 1.5),
    "owners of chunks, two of hot ones": partial(HotChunksTwice, 1.5),
}
STALE_S = (1.0, 10.0, 60.0)


@dataclass(frozen=True, slots=True)
class Setting:
    """requests: of a run. load: the share of the devices' time that they need."""

    requests: int = 12_000
    load: float = 0.7
    seed: int = 0


def compare(prompts: Prompts, service: Service, setting: Setting) -> list[dict[str, Any]]:
    """A row a policy: hit rate of memory, over that of random, waits and spread.

    The last row is one replica with a memory as large as all four together, under as much load a
    replica: no choice among four can find more.
    """
    share = prompts.tokens * service.bytes_a_token / REPLICAS
    cluster = Cluster(REPLICAS, share, 0, service)
    outcomes = {
        name: run_policy(cluster, prompts, setting, make())
        for name, make in {**COMPARED, **TRIED}.items()
    }
    for stale in STALE_S:
        name = f"ours, reports up to {stale:.0f} s old"
        old = replace(cluster, report_every_s=stale)
        outcomes[name] = run_policy(old, prompts, setting, ByMemory())
    every = Cluster(1, share * REPLICAS, 0, service)
    outcomes["one memory of all four"] = run_policy(every, prompts, setting, AtRandom())
    random = outcomes["random"].hits["memory"]
    return [
        {"policy": name, "of_random": found.hits["memory"] / random, **asdict(found)}
        for name, found in outcomes.items()
    ]


def run_policy(cluster: Cluster, prompts: Prompts, setting: Setting, policy: Policy) -> Outcome:
    """What one policy gives."""
    drawn = list(prompts.drawn(setting.requests, setting.seed))
    rate = setting.load * cluster.replicas / mean_device_s(cluster.service, drawn)
    arrivals = poisson(setting.requests, rate, setting.seed, 2)
    return outcome(simulate(cluster, drawn, arrivals, policy))


def mean_device_s(service: Service, prompts: Iterable[Prompt]) -> float:
    """Seconds of a device that a prompt takes, the mean."""
    return mean(
        service.prefill_s(sum(prompt.chunks.values()), prompt.own_tokens)
        + prompt.output_tokens * service.decode_device_s
        for prompt in prompts
    )
