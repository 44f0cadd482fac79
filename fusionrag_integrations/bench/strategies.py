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

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.types import AnswerSettings, KVKind, KVSource

BASELINES = ("full_attention", "prefix_cache", "full_reuse")
SELECTING = (
    *("random", "cacheblend", "cache_craft", "epic", "fusionrag_paper"),
    *("prophetkv", "infoflow", "fusionrag"),
)
STRATEGY_NAMES = (*BASELINES, *SELECTING)
DEFAULT_STRATEGIES = (
    *BASELINES,
    *("random", "cacheblend", "cache_craft", "epic", "fusionrag_paper", "fusionrag"),
)


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to answer. ratio: the share of chunk tokens that it may recompute."""

    name: str
    kv: KVSource
    ratio: float

    @property
    def stored(self) -> str:
        """Which KV of chunks it uses: isolated, fused or none."""
        return "none" if self.name in ("full_attention", "prefix_cache") else self.kv

    def settings(self, max_tokens: int) -> AnswerSettings:
        """How the engine is asked to answer so; at ratios 0 and 1 no selector decides anything."""
        selector = self.name
        if self.ratio == 0.0 or self.name not in SELECTING:
            selector = "none"
        elif self.ratio == 1.0:
            selector = "all"
        return AnswerSettings(
            kv=self.kv,
            selector=selector,
            ratio=self.ratio,
            break_even=False,  # what is asked for is what is measured
            max_tokens=max_tokens,
        )


def make_strategies(
    names: Sequence[str], ratios: Sequence[float], kinds: Sequence[KVKind]
) -> list[Strategy]:
    """Every combination. The reference points of normalised F1 come first, asked for or not.

    Raises `InvalidInputError` for a name that isn't known.
    """
    if unknown := [name for name in names if name not in STRATEGY_NAMES]:
        raise InvalidInputError(
            f"Unknown strategies {', '.join(unknown)}; known are {', '.join(STRATEGY_NAMES)}."
        )
    found = [Strategy("full_attention", "none", 1.0), Strategy("full_reuse", "isolated", 0.0)]
    if "prefix_cache" in names:
        found.append(Strategy("prefix_cache", "prefix", 1.0))
    if "full_reuse" in names:
        found += [Strategy("full_reuse", kind, 0.0) for kind in kinds]
    found += [
        Strategy(name, kind, ratio)
        for name in names
        if name in SELECTING
        for kind in kinds
        for ratio in ratios
    ]
    return list(dict.fromkeys(found))
