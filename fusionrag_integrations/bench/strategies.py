"""The ways to answer that are compared: which KV, which tokens are recomputed, and how many.

full_attention   the model's own dense prefill
prefix_cache     the KV of what every prompt begins with; everything else is computed
full_reuse       stored KV of each chunk, nothing recomputed (with isolated KV: TurboRAG)
the others       stored KV, and a share of the chunk tokens recomputed, chosen by the selector of
                 that name (selectors/)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.serving.settings import AnswerSettings, KVSource

PlacedKV = Literal["isolated", "fused", "isolated_as_stored", "fused_as_stored"]
"""What is placed of a chunk: `fused` is our default, fitted to where the chunk stands; it and
`isolated` are corrected while tokens are recomputed. The others are what the store holds, moved to
its place and nothing else."""

BASELINES = ("full_attention", "prefix_cache", "full_reuse")
SELECTING = (
    *("random", "cacheblend", "cache_craft", "epic", "fusionrag_paper"),
    *("prophetkv", "infoflow", "fusionrag"),
)
STRATEGY_NAMES = (*BASELINES, *SELECTING)
DEFAULT_STRATEGIES = (
    *("full_attention", "full_reuse"),
    *("random", "cacheblend", "cache_craft", "epic", "fusionrag_paper", "fusionrag"),
)
PUBLISHED_KV: dict[str, PlacedKV] = {
    "cacheblend": "isolated_as_stored",
    "cache_craft": "fused_as_stored",  # made behind the chunks that a chunk stood behind before
    "epic": "isolated_as_stored",
    "fusionrag_paper": "fused_as_stored",
    "prophetkv": "isolated_as_stored",
    "infoflow": "isolated_as_stored",
}
"""The KV that a method's authors place; over another it is their selector only."""

_PUBLISHED = ":published"
_AS_STORED = "_as_stored"


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to answer. ratio: the share of chunk tokens that it may recompute."""

    name: str
    kv: PlacedKV | Literal["prefix", "none"]
    ratio: float

    @property
    def placed(self) -> str:
        """Which KV of chunks it places, or none."""
        return self.kv if self.kv in get_args(PlacedKV) else "none"

    @property
    def as_published(self) -> bool:
        """Whether it is a method of others over the KV that they place."""
        return PUBLISHED_KV.get(self.name) == self.kv

    def settings(self, max_tokens: int) -> AnswerSettings:
        """How the engine is asked to answer so; at ratios 0 and 1 no selector decides anything.

        A prefix cache computes as full attention does, behind what it holds (`PrefixCache`).
        """
        selector = self.name
        if self.ratio == 0.0 or self.name not in SELECTING:
            selector = "none"
        elif self.ratio == 1.0:
            selector = "all"
        kv = "none" if self.kv == "prefix" else self.kv.removesuffix(_AS_STORED)
        return AnswerSettings(
            kv=cast(KVSource, kv),
            corrected=not self.kv.endswith(_AS_STORED),
            selector=selector,
            ratio=self.ratio,
            break_even=False,  # what is asked for is what is measured
            max_tokens=max_tokens,
            repetition_penalty=1.0,  # else answers depend on more than the model's distributions
        )


FULL = Strategy("full_attention", "none", 1.0)
"""What every other strategy is compared with."""

REUSE = Strategy("full_reuse", "isolated", 0.0)
"""What `recovered` and normalised F1 are measured from, as TurboRAG does it: isolated KV as it is
stored, since nothing is recomputed to correct it by. It stays so whatever is done to the KV of
others; else results couldn't be compared."""


def make_strategies(
    names: Sequence[str], ratios: Sequence[float], kinds: Sequence[PlacedKV]
) -> list[Strategy]:
    """Every combination. What all are compared with comes first, asked for or not.

    names: of strategies over each of `kinds`; NAME:published is a method of others over the KV
    that its authors place. Raises `InvalidInputError` for a name that isn't known.
    """
    known = {*STRATEGY_NAMES, *(name + _PUBLISHED for name in PUBLISHED_KV)}
    if unknown := [name for name in names if name not in known]:
        raise InvalidInputError(
            f"Unknown strategies {', '.join(unknown)}; known are {', '.join(STRATEGY_NAMES)}, and "
            f"with {_PUBLISHED} behind the name {', '.join(PUBLISHED_KV)}."
        )
    found = [FULL, REUSE]
    if "prefix_cache" in names:
        found.append(Strategy("prefix_cache", "prefix", 1.0))
    if "full_reuse" in names:
        found += [Strategy("full_reuse", kind, 0.0) for kind in kinds]
    for listed in names:
        name = listed.removesuffix(_PUBLISHED)
        placed = kinds if name == listed else [PUBLISHED_KV[name]]
        if name in SELECTING:
            found += [Strategy(name, kind, ratio) for kind in placed for ratio in ratios]
    return list(dict.fromkeys(found))
