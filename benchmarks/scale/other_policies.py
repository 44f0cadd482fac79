"""Ways to choose a replica that were tried and not taken; docs/scale.md says what each gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import ceil

from fusionrag_integrations.ray.routing import ReplicaState, owner

DECAY = 0.1  # how much one choice counts in what is learnt of a chunk


class Plain:
    """Tokens in memory, and those that nobody reports for their owner, with a bounded load alone.

    `rank` without its term for the load, and without weighing memory more than ownership.
    """

    def __init__(self, slack: float = 1.25) -> None:
        self._slack = slack

    def choose(self, chunks: Mapping[str, int], replicas: Sequence[ReplicaState]) -> str:
        names = [replica.name for replica in replicas]
        scores = dict.fromkeys(names, 0.0)
        for chunk, tokens in chunks.items():
            holders = [replica.name for replica in replicas if chunk in replica.in_memory]
            for name in holders or [owner(chunk, names)]:
                scores[name] += tokens
        return _best(replicas, self._slack, scores)


class Owner:
    """The owner of one thing in the prompt; where that is full, who owned it without that one.

    key: what of a prompt is owned: its first chunk, its longest, the document of most of it.
    """

    def __init__(self, key: Callable[[Mapping[str, int]], str], slack: float = 1.25) -> None:
        self._key = key
        self._slack = slack

    def choose(self, chunks: Mapping[str, int], replicas: Sequence[ReplicaState]) -> str:
        open_ones = {replica.name for replica in _below(replicas, self._slack)}
        return owner(self._key(chunks), sorted(open_ones))


class Learned:
    """A directory of where chunks were sent lately, in the router, without reports."""

    def __init__(self, slack: float = 1.25) -> None:
        self._slack = slack
        self._sent: dict[str, dict[str, float]] = {}

    def choose(self, chunks: Mapping[str, int], replicas: Sequence[ReplicaState]) -> str:
        names = [replica.name for replica in replicas]
        scores = dict.fromkeys(names, 0.0)
        for chunk, tokens in chunks.items():
            for name, weight in self._sent.get(chunk, {owner(chunk, names): 1.0}).items():
                scores[name] += tokens * weight
        chosen = _best(replicas, self._slack, scores)
        for chunk in chunks:
            sent = {n: (1 - DECAY) * weight for n, weight in self._sent.get(chunk, {}).items()}
            self._sent[chunk] = sent | {chosen: sent.get(chosen, 0.0) + DECAY}
        return chosen


class HotChunksTwice:
    """Owners alone, without reports; a chunk asked for more than `HOT` times the mean has two."""

    HOT = 2.5

    def __init__(self, slack: float = 1.25) -> None:
        self._slack = slack
        self._asked: Counter[str] = Counter()

    def choose(self, chunks: Mapping[str, int], replicas: Sequence[ReplicaState]) -> str:
        self._asked.update(chunks.keys())
        hot = self.HOT * self._asked.total() / max(len(self._asked), 1)
        names = [replica.name for replica in replicas]
        scores = dict.fromkeys(names, 0.0)
        for chunk, tokens in chunks.items():
            first = owner(chunk, names)
            scores[first] += tokens
            if self._asked[chunk] > hot and len(names) > 1:
                scores[owner(chunk, [name for name in names if name != first])] += tokens
        return _best(replicas, self._slack, scores)


def first_chunk(chunks: Mapping[str, int]) -> str:
    return next(iter(chunks))


def longest_chunk(chunks: Mapping[str, int]) -> str:
    return max(chunks, key=lambda chunk: (chunks[chunk], chunk))


def main_document(chunks: Mapping[str, int]) -> str:
    """The document with most of the prompt's tokens; a chunk id begins with it and a stroke."""
    tokens: Counter[str] = Counter()
    for chunk, count in chunks.items():
        tokens[chunk.split("/")[0]] += count
    return longest_chunk(tokens)


def _below(replicas: Sequence[ReplicaState], slack: float) -> list[ReplicaState]:
    """The replicas below the bound; there always is one."""
    most = ceil(slack * (sum(replica.load for replica in replicas) + 1) / len(replicas))
    return [replica for replica in replicas if replica.load < most]


def _best(replicas: Sequence[ReplicaState], slack: float, scores: Mapping[str, float]) -> str:
    """The replica of the highest score among those below the bound."""
    return max(_below(replicas, slack), key=lambda r: (scores[r.name], -r.load)).name
