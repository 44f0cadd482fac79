"""Which replica answers a prompt: where most of its chunks' KV is in memory, if it has room.

Each replica reports which KV it holds in memory. A chunk that none reports has an owner by
rendezvous hashing (Thaler and Ravishankar 1998): every replica draws a number for every chunk, and
the highest owns it. So all routers agree without asking each other, and a replica that comes or
goes moves only chunks that it owns. Loads are bounded, as in consistent hashing with bounded loads
(Mirrokni et al. 2018).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf

import xxhash

from fusionrag_integrations.errors import InvalidInputError

# Chosen by simulation; docs/scale.md says what others gave.
SLACK = 1.5
OWNED = 0.3  # what a token counts that a replica only owns, beside one in its memory
LOAD = 0.2  # what an average load counts, beside having all of a prompt in memory


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a router knows of a replica.

    name: the same for as long as it lives. load: requests under way or waiting there. in_memory:
    ids of the chunks whose KV it reports to hold in memory; may be outdated or empty. room: how
    many requests it takes before it turns others away.
    """

    name: str
    load: int
    in_memory: Container[str]
    room: float = inf


def rank(
    chunks: Mapping[str, int], replicas: Sequence[ReplicaState], *, slack: float = SLACK
) -> list[str]:
    """Names of replicas, best first, for a prompt with these chunks.

    chunks: tokens by chunk id. slack: how many times the average load, this request counted, a
    replica may have; those that have reached it, or have no room, come last, the least loaded of
    them first. Raises `InvalidInputError` for a slack below 1.
    """
    if not slack >= 1.0:
        raise InvalidInputError(f"The slack is {slack}; give 1 or more, such as {SLACK}.")
    scores = _scores(chunks, replicas)
    average = (sum(replica.load for replica in replicas) + 1) / max(len(replicas), 1)
    most = ceil(slack * average)
    heaviest = max(chunks, key=lambda chunk: (chunks[chunk], chunk), default="")

    def order(replica: ReplicaState) -> tuple[bool, float, int]:
        name, load = replica.name, replica.load
        full = load >= min(most, replica.room)
        rated = load if full else LOAD * load / average - scores[name]
        return full, rated, -_drawn(heaviest, name)

    return [replica.name for replica in sorted(replicas, key=order)]


def owner(chunk: str, names: Iterable[str]) -> str:
    """Which of these replicas owns a chunk, by rendezvous hashing."""
    return max(names, key=lambda name: _drawn(chunk, name))


def _scores(chunks: Mapping[str, int], replicas: Sequence[ReplicaState]) -> dict[str, float]:
    """By replica: the share of chunk tokens in its memory, and `OWNED` of those it owns."""
    scores = {replica.name: 0.0 for replica in replicas}
    tokens = sum(chunks.values()) or 1
    for chunk, count in chunks.items():
        holders = [replica.name for replica in replicas if chunk in replica.in_memory]
        for name in holders:
            scores[name] += count / tokens
        if scores and not holders:
            scores[owner(chunk, scores)] += OWNED * count / tokens
    return scores


def _drawn(chunk: str, name: str) -> int:
    """The number that a replica draws for a chunk, the same in every process."""
    return xxhash.xxh3_64_intdigest(f"{len(name)}:{name}{chunk}".encode("utf-8", "surrogatepass"))
