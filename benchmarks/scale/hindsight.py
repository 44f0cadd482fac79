"""What a placement gives that is made with the prompts known: found by simulated annealing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Any

import numpy as np

from benchmarks.scale.outcome import WARM_UP
from benchmarks.scale.parameters import Cluster, Service
from benchmarks.scale.policies import AtRandom, ByMemory
from benchmarks.scale.prompts import Prompt, Prompts
from benchmarks.scale.routing import REPLICAS, Setting, run_policy
from fusionrag_integrations.ray.routing import ReplicaState, rank

MOST = 1.25  # how many times the mean a replica may get of the prompts
HOT, COLD = 2e-3, 1e-6  # losses of hits that are accepted at the first step and at the last


@dataclass(frozen=True, slots=True)
class Placement:
    """held: the chunks in each memory. hits: the share of the prompts' chunk tokens in them."""

    held: tuple[frozenset[str], ...]
    hits: float


class Planned:
    """The package's own rule, with a placement in the place of what replicas report."""

    def __init__(self, placement: Placement) -> None:
        self._held = placement.held

    def choose(self, chunks: Mapping[str, int], replicas: Sequence[ReplicaState]) -> str:
        planned = [
            replace(replica, in_memory=held)
            for replica, held in zip(replicas, self._held, strict=True)
        ]
        return rank(chunks, planned)[0]


def compare_with_hindsight(
    prompts: Prompts, service: Service, setting: Setting, steps: int
) -> dict[str, float]:
    """Hit rates of memory: two policies, a plan made of the warm-up's prompts, and hindsight.

    Hindsight is a placement made of the very prompts that are counted, each answered at once.
    steps: of annealing.
    """
    share = prompts.tokens / REPLICAS
    cluster = Cluster(REPLICAS, share * service.bytes_a_token, 0, service)
    drawn = list(prompts.drawn(setting.requests, setting.seed))
    first = int(len(drawn) * WARM_UP)
    plan = place(drawn[:first], share, REPLICAS, steps, setting.seed)
    policies: Mapping[str, Any] = {
        "random": AtRandom(),
        "ours": ByMemory(),
        "a plan of past prompts": Planned(plan),
    }
    found = {
        name: run_policy(cluster, prompts, setting, policy).hits["memory"]
        for name, policy in policies.items()
    }
    return found | {"hindsight": place(drawn[first:], share, REPLICAS, steps, setting.seed).hits}


def place(
    prompts: Sequence[Prompt], memory_tokens: float, replicas: int, steps: int, seed: int
) -> Placement:
    """Share prompts out among replicas so that their memories hold most of their tokens.

    Each memory holds what its prompts ask for most often. At each step a prompt, with all that
    have the same chunks, is moved to another replica; a change for the worse is kept by a chance
    that falls (Kirkpatrick et al. 1983).
    """
    shares = _Shares(prompts, memory_tokens, replicas, np.random.default_rng(seed))
    for step in range(steps):
        shares.move(HOT * (COLD / HOT) ** (step / steps))
    return shares.placement()


class _Shares:
    """Which replica gets which prompts, and how often each is asked for which chunk."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        memory_tokens: float,
        replicas: int,
        draw: np.random.Generator,
    ) -> None:
        distinct = Counter(frozenset(prompt.chunks) for prompt in prompts)
        tokens = {chunk: n for prompt in prompts for chunk, n in prompt.chunks.items()}
        self._draw, self._memory = draw, memory_tokens
        self._names = sorted(tokens)
        self._tokens = np.array([tokens[name] for name in self._names], float)
        number = {name: at for at, name in enumerate(self._names)}
        ordered = sorted(distinct, key=sorted)
        self._chunks = [np.array(sorted(number[name] for name in names)) for names in ordered]
        self._count = np.array([distinct[names] for names in ordered], float)
        self._most = MOST * len(prompts) / replicas
        self._where = np.zeros(len(ordered), int)
        self._asked = np.zeros((replicas, len(self._names)))
        self._load = np.zeros(replicas)
        for at in np.argsort(-self._count, kind="stable"):
            self._where[at] = np.argmin(self._load)
            self._add(int(at), int(self._where[at]), 1)
        self._found = np.array([self._tokens_found(replica) for replica in range(replicas)])
        self._all = float((self._asked * self._tokens).sum())

    def move(self, temperature: float) -> None:
        """Try one. temperature: a loss, in hits, that is kept by a chance of 1/e."""
        at, to = (int(self._draw.integers(len(of))) for of in (self._count, self._load))
        old = int(self._where[at])
        if to == old or self._load[to] + self._count[at] > self._most:
            return
        self._add(at, old, -1)
        self._add(at, to, 1)
        found = [self._tokens_found(old), self._tokens_found(to)]
        gain = (sum(found) - self._found[[old, to]].sum()) / self._all
        if gain >= 0 or self._draw.random() < exp(gain / temperature):
            self._found[[old, to]], self._where[at] = found, to
        else:
            self._add(at, to, -1)
            self._add(at, old, 1)

    def placement(self) -> Placement:
        held = (self._names_held(replica) for replica in range(len(self._load)))
        return Placement(tuple(held), float(self._found.sum()) / self._all)

    def _add(self, at: int, replica: int, sign: int) -> None:
        self._asked[replica, self._chunks[at]] += sign * self._count[at]
        self._load[replica] += sign * self._count[at]

    def _held(self, replica: int) -> np.ndarray[Any, Any]:
        """Numbers of the chunks that are asked for most often and fit."""
        order = np.argsort(-self._asked[replica], kind="stable")
        fit = np.searchsorted(np.cumsum(self._tokens[order]), self._memory, side="right")
        return order[:fit]

    def _tokens_found(self, replica: int) -> float:
        held = self._held(replica)
        return float(self._asked[replica, held] @ self._tokens[held])

    def _names_held(self, replica: int) -> frozenset[str]:
        return frozenset(self._names[at] for at in self._held(replica))
