"""Measurements -> a row for each strategy and kind of question, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import mean, median

from fusionrag_integrations.bench.inspection import Inspection
from fusionrag_integrations.bench.measurement import Measurement
from fusionrag_integrations.bench.metrics import normalised
from fusionrag_integrations.bench.statistics import normalised_interval
from fusionrag_integrations.bench.strategies import FULL, REUSE, Strategy
from fusionrag_integrations.check.bootstrap import interval, ratio_interval

ALL_KINDS = "all"
WORST = 0.1  # the share of questions that `kl_worst_tenth` is of

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class QualityRow:
    """A strategy on one kind of question, or on all.

    Means over n questions, but for ttft_ms and speedup, which are medians over the `timed` first
    ones; speedup is full attention's TTFT over it, question by question. Intervals are of 95%: ci
    is f1's. normalized_f1 is None where full attention isn't clearly ahead of full reuse. work:
    token-layers before the first token over full attention's. deviation: of K and V from the true
    ones, by layer. overlap_*: with an oracle's choice. places: shares of the selected tokens by
    their place in their chunk.

    Beside full attention: kept is the share of the `kept_of` questions that it answers rightly
    which this strategy answers rightly, too; equal, of answers that are the same token for token;
    agreement, of the tokens of its answers that are likeliest here, too. kl: the divergence from it
    in nats, mean over the counted tokens of all its answers; kl_median and kl_worst_tenth are over
    questions, of each one's mean; kl_answer is over the tokens of accepted answers. recovered: the
    share of full reuse's divergence, summed over the same questions, that this strategy takes away.
    None where there is nothing to divide by.
    """

    strategy: str
    kv: str
    ratio: float
    kind: str
    n: int
    em: float
    f1: float
    normalized_f1: float | None
    ci: Interval
    ttft_ms: float | None
    rouge1: float
    normalized_ci: Interval | None
    speedup: float | None
    timed: int
    recomputed_tokens: float
    work: float
    judged: float | None
    deviation: tuple[float, ...]
    overlap_deviation: float | None
    overlap_attention: float | None
    places: tuple[float, ...]
    kept: float | None
    kept_ci: Interval | None
    kept_of: int
    equal: float
    equal_ci: Interval
    agreement: float
    agreement_ci: Interval | None
    kl: float
    kl_ci: Interval | None
    kl_median: float
    kl_worst_tenth: float
    kl_answer: float | None
    recovered: float | None
    recovered_ci: Interval | None


def summarise(measurements: Sequence[Measurement]) -> list[QualityRow]:
    """Rows kind by kind, and at last over all kinds; strategies in their order."""
    return [row for kind in kinds_of(measurements) for row in _rows(kind, measurements)]


def kinds_of(measurements: Sequence[Measurement]) -> list[str]:
    """The kinds of question, and all of them together where there are several."""
    kinds = list(dict.fromkeys(m.kind for m in measurements))
    return kinds if len(kinds) == 1 else [*kinds, ALL_KINDS]


def of_kind(measurements: Sequence[Measurement], kind: str) -> list[Measurement]:
    """Those of one kind of question, or all."""
    return [m for m in measurements if kind in (m.kind, ALL_KINDS)]


def by_strategy(measurements: Sequence[Measurement]) -> dict[Strategy, list[Measurement]]:
    """Each strategy's own, in the order of questions."""
    groups: dict[Strategy, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.strategy, []).append(measurement)
    return groups


def kept_answers(group: Sequence[Measurement], full: Sequence[Measurement]) -> list[float]:
    """1 or 0 for each question that full attention answers rightly: whether `group` does, too."""
    return [float(m.right) for m, f in zip(group, full, strict=True) if f.right]


def divergences(group: Sequence[Measurement]) -> list[float]:
    """Each question's, summed over the tokens that count."""
    return [m.closeness.kl for m in group]


def _rows(kind: str, measurements: Sequence[Measurement]) -> list[QualityRow]:
    groups = by_strategy(of_kind(measurements, kind))
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
    times = [
        (m.ttft_ms, f.ttft_ms / m.ttft_ms)
        for m, f in zip(group, full, strict=True)
        if m.ttft_ms is not None and f.ttft_ms is not None
    ]
    kept = kept_answers(group, full)
    close = [m.closeness for m in group]
    equal = [float(c.equal) for c in close]
    kl, counted = divergences(group), [c.counted for c in close]
    a_token = sorted(c.kl / c.counted for c in close)
    agreed, tokens = [c.agreed for c in close], [c.tokens for c in close]
    taken = [r - own for r, own in zip(divergences(reuse), kl, strict=True)]
    return QualityRow(
        strategy=strategy.name,
        kv=strategy.placed,
        ratio=strategy.ratio,
        kind=kind,
        n=len(group),
        em=mean(m.em for m in group),
        f1=mean(scores),
        normalized_f1=normalised(mean(scores), mean(low), mean(high)),
        ci=interval(scores),
        ttft_ms=median(ms for ms, _ in times) if times else None,
        rouge1=mean(m.rouge1 for m in group),
        normalized_ci=normalised_interval(scores, low, high),
        speedup=median(ratio for _, ratio in times) if times else None,
        timed=len(times),
        recomputed_tokens=mean(m.recomputed for m in group),
        work=mean(m.work for m in group),
        judged=_mean_of([m.judged for m in group]),
        deviation=tuple(mean(layer) for layer in zip(*(k.deviation for k in looks), strict=True)),
        overlap_deviation=_mean_of([look.overlap_deviation for look in looks]),
        overlap_attention=_mean_of([look.overlap_attention for look in looks]),
        places=_shares(looks),
        kept=mean(kept) if kept else None,
        kept_ci=interval(kept) if kept else None,
        kept_of=len(kept),
        equal=mean(equal),
        equal_ci=interval(equal),
        agreement=sum(agreed) / sum(tokens),
        agreement_ci=ratio_interval(agreed, tokens),
        kl=sum(kl) / sum(counted),
        kl_ci=ratio_interval(kl, counted),
        kl_median=median(a_token),
        kl_worst_tenth=mean(a_token[-ceil(WORST * len(a_token)) :]),
        kl_answer=_ratio([c.kl_answer for c in close], [c.answer_tokens for c in close]),
        recovered=_ratio(taken, divergences(reuse)),
        recovered_ci=ratio_interval(taken, divergences(reuse)),
    )


def _ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    """Of the sums; None where there is nothing to divide by."""
    return sum(numerators) / sum(denominators) if sum(denominators) > 0 else None


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _shares(looks: Sequence[Inspection]) -> tuple[float, ...]:
    counts = [sum(column) for column in zip(*(look.places for look in looks), strict=True)]
    total = sum(counts)
    return tuple(count / total for count in counts) if total else ()
