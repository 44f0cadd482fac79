"""How far our selector is ahead of others at the same ratio, question by question."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.results.differences import Difference, paired_difference
from fusionrag_integrations.bench.measurement import Measurement
from fusionrag_integrations.bench.strategies import FULL, REUSE, Strategy
from fusionrag_integrations.bench.summary import (
    by_strategy,
    divergences,
    kept_answers,
    kinds_of,
    of_kind,
)
from fusionrag_integrations.check.bootstrap import ratio_interval

OURS = "fusionrag"

_ByStrategy = Mapping[Strategy, Sequence[Measurement]]


@dataclass(frozen=True, slots=True)
class Lead:
    """Ours over another selector on the same KV.

    mean, low, high: of F1, with its 95% interval. recovered: of the share of full reuse's
    divergence that is taken away; None where there is too little of it.
    """

    kind: str
    kv: str
    ratio: float
    other: str
    mean: float
    low: float
    high: float
    recovered: Difference | None


@dataclass(frozen=True, slots=True)
class PublishedLead:
    """Ours over fused KV, over another method on the KV that its authors place, which is `kv`.

    kept: of the share of full attention's right answers; None where it has none.
    """

    kind: str
    kv: str
    ratio: float
    other: str
    recovered: Difference | None
    kept: Difference | None


def leads(measurements: Sequence[Measurement]) -> list[Lead]:
    """Over every other selector on the same KV, by kind of question."""
    found: list[Lead] = []
    by_kind = _groups(measurements)
    for mine, other in _pairs(measurements, lambda mine, other: other.kv == mine.kv):
        for kind, groups in by_kind.items():
            f1 = paired_difference(*([m.f1 for m in groups[s]] for s in (mine, other)))
            found.append(
                Lead(
                    kind=kind,
                    kv=mine.placed,
                    ratio=mine.ratio,
                    other=other.name,
                    mean=f1.mean,
                    low=f1.low,
                    high=f1.high,
                    recovered=_recovered(groups, mine, other),
                )
            )
    return found


def published_leads(measurements: Sequence[Measurement]) -> list[PublishedLead]:
    """Our default, over every other method as published, by kind of question."""
    ours = "fused"  # the engine's default
    by_kind = _groups(measurements)
    return [
        PublishedLead(
            kind=kind,
            kv=other.placed,
            ratio=mine.ratio,
            other=other.name,
            recovered=_recovered(groups, mine, other),
            kept=_kept(groups, mine, other),
        )
        for mine, other in _pairs(
            measurements, lambda mine, other: mine.kv == ours and other.as_published
        )
        for kind, groups in by_kind.items()
    ]


def _pairs(
    measurements: Sequence[Measurement], compared: Callable[[Strategy, Strategy], bool]
) -> Iterator[tuple[Strategy, Strategy]]:
    """Ours and others at the same ratio, where a selector decides something."""
    strategies = by_strategy(measurements)
    for mine in strategies:
        if mine.name == OURS and 0.0 < mine.ratio < 1.0:
            for other in strategies:
                if other.name != OURS and other.ratio == mine.ratio and compared(mine, other):
                    yield mine, other


def _groups(measurements: Sequence[Measurement]) -> dict[str, _ByStrategy]:
    """Measurements by kind of question and strategy."""
    return {kind: by_strategy(of_kind(measurements, kind)) for kind in kinds_of(measurements)}


def _kept(groups: _ByStrategy, mine: Strategy, other: Strategy) -> Difference | None:
    own, theirs = (kept_answers(groups[s], groups[FULL]) for s in (mine, other))
    return paired_difference(own, theirs) if own else None


def _recovered(groups: _ByStrategy, mine: Strategy, other: Strategy) -> Difference | None:
    own, theirs, reuse = (divergences(groups[s]) for s in (mine, other, REUSE))
    gaps = [b - a for a, b in zip(own, theirs, strict=True)]
    bounds = ratio_interval(gaps, reuse)
    return bounds and Difference(sum(gaps) / sum(reuse), *bounds)
