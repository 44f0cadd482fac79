"""Every policy on the same requests: four replicas, the memory of each a quarter of all KV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
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
from benchmarks.scale.prompts import Prompts
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


def compare(
    prompts: Prompts, service: Service, setting: Setting, tried: bool = True
) -> list[dict[str, Any]]:
    """A row a policy: hit rate of memory, over that of random, waits and spread.

    `tried`: those that weren't taken, too. The last row is one memory as large as all together.
    """
    share = prompts.tokens * service.bytes_a_token / REPLICAS
    cluster = Cluster(REPLICAS, share, 0, service)
    policies = {**COMPARED, **(TRIED if tried else {})}
    outcomes = {name: _run(cluster, prompts, setting, make()) for name, make in policies.items()}
    for stale in STALE_S:
        name = f"ours, reports up to {stale:.0f} s old"
        old = replace(cluster, report_every_s=stale)
        outcomes[name] = _run(old, prompts, setting, ByMemory())
    every = Cluster(1, share * REPLICAS, 0, service)
    alone = replace(setting, load=setting.load / REPLICAS)
    outcomes["one memory of all four"] = _run(every, prompts, alone, AtRandom())
    random = outcomes["random"].hits["memory"]
    return [
        {"policy": name, "of_random": found.hits["memory"] / random, **asdict(found)}
        for name, found in outcomes.items()
    ]


def _run(cluster: Cluster, prompts: Prompts, setting: Setting, policy: Policy) -> Outcome:
    drawn = list(prompts.drawn(setting.requests, setting.seed))
    rate = setting.load * cluster.replicas / mean_device_s(cluster.service, drawn)
    arrivals = poisson(setting.requests, rate, setting.seed, 2)
    return outcome(simulate(cluster, drawn, arrivals, policy))


def mean_device_s(service: Service, prompts: list[Any]) -> float:
    """Seconds of a device that a prompt takes, the mean."""
    taken = [
        service.prefill_s(sum(p.chunks.values()), p.own_tokens)
        + p.output_tokens * service.decode_device_s
        for p in prompts
    ]
    return sum(taken) / len(taken)
