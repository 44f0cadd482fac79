"""Measurements -> a row for each strategy and kind of question, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import mean, median

from fusionrag_integrations.bench.inspection import Inspection
from fusionrag_integrations.bench.metrics import normalised
from fusionrag_integrations.bench.quality import Measurement
from fusionrag_integrations.bench.statistics import normalised_interval
from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.bootstrap import Difference, interval, paired_difference

FULL = Strategy("full_attention", "none", 1.0)
REUSE = Strategy("full_reuse", "isolated", 0.0)
ALL_KINDS = "all"


@dataclass(frozen=True, slots=True)
class QualityRow:
    """A strategy on one kind of question, or on all.

    Means over n questions, but for ttft_ms and speedup, which are medians; speedup is full
    attention's TTFT over it, question by question. ci and normalized_ci: 95% intervals of f1 and
    normalized_f1, which are None where full attention isn't clearly ahead of full reuse. work:
    token-layers before the first token over full attention's. deviation: of K and V from the true
    ones, by layer. overlap_*: with an oracle's choice. places: shares of the selected tokens by
    their place in their chunk.
    """

    strategy: str
    kv: str
    ratio: float
    kind: str
    n: int
    em: float
    f1: float
    normalized_f1: float | None
    ci: tuple[float, float]
    ttft_ms: float
    rouge1: float
    normalized_ci: tuple[float, float] | None
    speedup: float
    recomputed_tokens: float
    work: float
    judged: float | None
    deviation: tuple[float, ...]
    overlap_deviation: float | None
    overlap_attention: float | None
    places: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Lead:
    """By how much F1 of one strategy is above another's: mean over questions, 95% interval."""

    kind: str
    kv: str
    ratio: float
    other: str
    mean: float
    low: float
    high: float


def summarise(measurements: Sequence[Measurement]) -> list[QualityRow]:
    """Rows kind by kind, and at last over all kinds; strategies in their order."""
    kinds = list(dict.fromkeys(m.kind for m in measurements))
    rows = [row for kind in kinds for row in _rows(kind, of_kind(measurements, kind))]
    return rows + (_rows(ALL_KINDS, measurements) if len(kinds) > 1 else [])


def leads(measurements: Sequence[Measurement], own: str) -> list[Lead]:
    """How far `own` is ahead of every other selector on the same KV at the same ratio, by kind."""
    by_strategy: dict[Strategy, list[Measurement]] = {}
    for measurement in measurements:
        by_strategy.setdefault(measurement.strategy, []).append(measurement)
    kinds = list(dict.fromkeys(m.kind for m in measurements))
    return [
        Lead(kind, mine.stored, mine.ratio, other.name, *astuple(gap))
        for mine in by_strategy
        if mine.name == own and 0.0 < mine.ratio < 1.0
        for other in by_strategy
        if other.name != own and (other.kv, other.ratio) == (mine.kv, mine.ratio)
        for kind in (kinds if len(kinds) == 1 else [*kinds, ALL_KINDS])
        for gap in [_gap(of_kind(by_strategy[mine], kind), of_kind(by_strategy[other], kind))]
    ]


def _gap(mine: Sequence[Measurement], other: Sequence[Measurement]) -> Difference:
    return paired_difference([m.f1 for m in mine], [m.f1 for m in other])


def of_kind(measurements: Sequence[Measurement], kind: str) -> list[Measurement]:
    """Those of one kind of question, or all."""
    return [m for m in measurements if kind in (m.kind, ALL_KINDS)]


def _rows(kind: str, measurements: Sequence[Measurement]) -> list[QualityRow]:
    groups: dict[Strategy, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.strategy, []).append(measurement)
    full, reuse = groups[FULL], groups[REUSE]
    return [_row(kind, strategy, group, full, reuse) for strategy, group in groups.items()]


def _row(
    kind: str,
    strategy: Strategy,
    group: Sequence[Measurement],
    full: Sequence[Measurement],
    reuse: Sequence[Measurement],
) -> QualityRow:
    scores, low, high = ([m.f1 for m in part] for part in (group, reuse, full))
    looks = [m.inspection for m in group if m.inspection is not None]
    judged = [m.judged for m in group if m.judged is not None]
    return QualityRow(
        strategy=strategy.name,
        kv=strategy.stored,
        ratio=strategy.ratio,
        kind=kind,
        n=len(group),
        em=mean(m.em for m in group),
        f1=mean(scores),
        normalized_f1=normalised(mean(scores), mean(low), mean(high)),
        ci=interval(scores),
        ttft_ms=median(m.ttft_ms for m in group),
        rouge1=mean(m.rouge1 for m in group),
        normalized_ci=normalised_interval(scores, low, high),
        speedup=median(f.ttft_ms / m.ttft_ms for f, m in zip(full, group, strict=True)),
        recomputed_tokens=mean(m.recomputed for m in group),
        work=mean(m.work for m in group),
        judged=mean(judged) if judged else None,
        deviation=tuple(mean(layer) for layer in zip(*(k.deviation for k in looks), strict=True)),
        overlap_deviation=_mean_of([look.overlap_deviation for look in looks]),
        overlap_attention=_mean_of([look.overlap_attention for look in looks]),
        places=_shares(looks),
    )


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _shares(looks: Sequence[Inspection]) -> tuple[float, ...]:
    counts = [sum(column) for column in zip(*(look.places for look in looks), strict=True)]
    total = sum(counts)
    return tuple(count / total for count in counts) if total else ()
