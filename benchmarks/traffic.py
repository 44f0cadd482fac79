"""A store under traffic, simulated: who stores how much, and who computes how often.

The paper's workload (arXiv 2601.12904, alternative path): of the chunks that come with questions
60% are known (ingested beforehand), 30% are new and shared by several questions, 10% are new and
come once. A prefix cache keeps a chunk's KV for what stood before it, and finds it again only
behind the same; ours keeps a chunk once, whatever stood before it, and new ones only if they are
admitted. Decisions are those of the package's own code; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.serving.adhoc import Admission

SHARES = {"known": 0.6, "shared": 0.3, "unique": 0.1}
RECOMPUTED = 0.15  # of a reused chunk's tokens, by default


@dataclass(frozen=True, slots=True)
class Traffic:
    """Questions, each with some chunks in random order.

    known, shared: how many chunks of each kind there are. popularity: the exponent of Zipf's law
    that their choice follows; 0 chooses evenly.
    """

    questions: int = 1000
    chunks: int = 10
    known: int = 500
    shared: int = 150
    popularity: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.questions, self.chunks, self.known, self.shared) < 1:
            raise InvalidInputError(f"Traffic needs at least one of everything; got {self}.")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a way to reuse took, in chunks.

    stored: kept at the end. computed: while questions waited; ingested: beforehand. recomputed: the
    tokens of reused chunks that are computed again. hit_rate: the share of chunks that was found.
    """

    stored: int
    computed: int
    hit_rate: float
    ingested: int = 0
    recomputed: float = 0.0


def simulate(traffic: Traffic) -> dict[str, Any]:
    """Both ways on the same questions, and what ours saves."""
    questions = list(draw_questions(traffic))
    prefix, ours = cost_of_prefix_cache(questions), cost_of_ours(questions, traffic)
    return {
        "traffic": asdict(traffic),
        "shares": SHARES,
        "prefix_cache": asdict(prefix),
        "ours": asdict(ours),
        "storage_saved": 1 - ours.stored / prefix.stored,
        "computing_saved": 1 - ours.computed / prefix.computed,
        "computing_saved_with_ingest": 1 - (ours.computed + ours.ingested) / prefix.computed,
        "computing_saved_with_recomputed": 1 - (ours.computed + ours.recomputed) / prefix.computed,
    }


def draw_questions(traffic: Traffic) -> Iterator[list[str]]:
    rng = np.random.default_rng(traffic.seed)
    kinds = list(SHARES)
    once = 0
    for _ in range(traffic.questions):
        names: dict[str, None] = {}
        while len(names) < traffic.chunks:
            kind = kinds[rng.choice(len(kinds), p=list(SHARES.values()))]
            if kind == "unique":
                once += 1
                names[f"unique {once}"] = None
                continue
            count = traffic.known if kind == "known" else traffic.shared
            weights = np.arange(1, count + 1) ** -traffic.popularity
            names[f"{kind} {rng.choice(count, p=weights / weights.sum())}"] = None
        yield [list(names)[place] for place in rng.permutation(len(names))]


def cost_of_prefix_cache(questions: list[list[str]]) -> Cost:
    """KV of every beginning that was seen, kept for ever."""
    seen: set[tuple[str, ...]] = set()
    computed = total = 0
    for chunks in questions:
        for stop in range(1, len(chunks) + 1):
            total += 1
            if tuple(chunks[:stop]) not in seen:
                seen.add(tuple(chunks[:stop]))
                computed += 1
    return Cost(len(seen), computed, 1 - computed / total)


def cost_of_ours(questions: list[list[str]], traffic: Traffic) -> Cost:
    """Known chunks are stored beforehand; of new ones those that come twice, without spare room."""
    admission = Admission(roomy=lambda: False)
    stored = {f"known {number}" for number in range(traffic.known)}
    computed = total = 0
    for chunks in questions:
        for name in chunks:
            total += 1
            if name not in stored:
                computed += 1
                if admission.admits(name):
                    stored.add(name)
    hits = total - computed
    return Cost(len(stored), computed, hits / total, traffic.known, RECOMPUTED * hits)
