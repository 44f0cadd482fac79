"""Which replica answers a prompt: the package's own way, and what it is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from random import Random
from typing import Protocol

from fusionrag_integrations.ray.routing import SLACK, ReplicaState, rank


class Policy(Protocol):
    """Chooses replicas; may learn from what it has chosen."""

    def choose(self, chunks: Mapping[str, int], replicas: Sequence[ReplicaState]) -> str:
        """The name of the replica for a prompt with these chunks (tokens by id, in order)."""


class ByMemory:
    """The package's own. slack: as `rank` takes it. reported: whether replicas report at all."""

    def __init__(self, slack: float = SLACK, *, reported: bool = True) -> None:
        self._slack = slack
        self._reported = reported

    def choose(self, chunks: Mapping[str, int], replicas: Sequence[ReplicaState]) -> str:
        if not self._reported:
            replicas = [replace(replica, in_memory=()) for replica in replicas]
        return rank(chunks, replicas, slack=self._slack)[0]


class AtRandom:
    """Any replica."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = Random(seed)

    def choose(self, chunks: Mapping[str, int], replicas: Sequence[ReplicaState]) -> str:
        return self._draw.choice(replicas).name


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._asked = 0

    def choose(self, chunks: Mapping[str, int], replicas: Sequence[ReplicaState]) -> str:
        self._asked += 1
        return replicas[self._asked % len(replicas)].name


class TwoChoices:
    """The less loaded of two drawn at random, which is Ray Serve's default."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = Random(seed)

    def choose(self, chunks: Mapping[str, int], replicas: Sequence[ReplicaState]) -> str:
        drawn = self._draw.sample(replicas, min(2, len(replicas)))
        return min(drawn, key=lambda replica: replica.load).name


class PrefixAffinity:
    """Ray Serve's `PrefixCacheAffinityRouter`, with chunks in the place of characters.

    The least loaded of the replicas that were sent the longest beginning of the prompt; below a
    tenth of it, the one that was sent least. Where loads differ by more than `imbalanced`, two
    choices. Ray's default for that is infinity, and what it was sent is never forgotten.
    """

    MATCHED = 0.1

    def __init__(self, imbalanced: float = inf) -> None:
        self._imbalanced = imbalanced
        self._two_choices = TwoChoices()
        self._sent: dict[tuple[str, ...], set[str]] = {}
        self._tokens: Counter[str] = Counter()

    def choose(self, chunks: Mapping[str, int], replicas: Sequence[ReplicaState]) -> str:
        loads = {replica.name: replica.load for replica in replicas}
        if max(loads.values()) - min(loads.values()) > self._imbalanced:
            chosen = self._two_choices.choose(chunks, replicas)
        else:
            matched, who = self._longest(chunks)
            if matched < self.MATCHED * sum(chunks.values()) or not who:
                chosen = min(loads, key=lambda name: self._tokens[name])
            else:
                chosen = min(sorted(who), key=lambda name: loads[name])
        self._remember(chunks, chosen)
        return chosen

    def _longest(self, chunks: Mapping[str, int]) -> tuple[int, set[str]]:
        """Tokens of the longest beginning that was sent anywhere, and where to."""
        matched, who, beginning = 0, set[str](), tuple[str, ...]()
        for chunk, tokens in chunks.items():
            beginning += (chunk,)
            if beginning not in self._sent:
                break
            matched, who = matched + tokens, self._sent[beginning]
        return matched, who

    def _remember(self, chunks: Mapping[str, int], name: str) -> None:
        beginning = tuple[str, ...]()
        for chunk, tokens in chunks.items():
            beginning += (chunk,)
            sent = self._sent.setdefault(beginning, set())
            if name not in sent:
                sent.add(name)
                self._tokens[name] += tokens
