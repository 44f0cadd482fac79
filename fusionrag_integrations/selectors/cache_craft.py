"""Cache-Craft's selection (SIGMOD 2025): how much of a chunk, by its context; which, by attention.

Each chunk's KV was computed behind other chunks. How much of it must be recomputed follows from its
attention to them, and from how many of them precede it again:

CCI   = 1 / (1 + exp(-a / b))        a, b: attention per pair of tokens to others, to itself
beta' = beta x (1 - gamma)           beta: share of a that went to chunks which precede it now
                                     gamma: share of their pairs whose order has changed (Kendall)
CFO   = alpha x CCI x (1 - beta')    share of the chunk's tokens to recompute

alpha is such that all chunks together spend the given ratio. In a chunk, the tokens with the most
attention to others are selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, cycle, islice
from math import exp

from fusionrag_integrations.documents.chunk_record import ContextTrace
from fusionrag_integrations.prompt.assembled import AssembledPrompt, Span
from fusionrag_integrations.selectors.probe import Probe
from fusionrag_integrations.selectors.selection import TokenSelection


@dataclass(frozen=True, slots=True)
class CacheCraft:
    """Selects floor(ratio x chunk tokens). The CFO of a chunk that was never fused is alpha."""

    ratio: float

    def select(self, prompt: AssembledPrompt, probe: Probe) -> TokenSelection:
        chunks = prompt.occurrences
        needs: list[float] = []
        before: list[str] = []
        for spans in chunks:
            needs.append(_need(spans[0], before))
            before.append(spans[0].record.isolated_key)
        sizes = [sum(span.length for span in spans) for spans in chunks]
        budget = int(self.ratio * sum(sizes))
        counts = share_out(budget, [n * s for n, s in zip(needs, sizes, strict=True)], sizes)
        chosen = [_most_attentive(s, count) for s, count in zip(chunks, counts, strict=True)]
        return TokenSelection(tuple(sorted(p for positions in chosen for p in positions)))


def cache_context_impact(trace: ContextTrace) -> float:
    """CCI in [0.5, 1]: near 1 where a chunk attended to others rather than to itself."""
    tokens = len(trace.outside)
    pairs_outside = tokens * trace.neighbour_tokens
    pairs_inside = tokens * (tokens + 1) / 2
    outside = sum(trace.outside) / pairs_outside if pairs_outside else 0.0
    inside = sum(trace.inside) / pairs_inside
    return 1.0 / (1.0 + exp(-outside / inside)) if inside else 1.0


def prefix_overlap(trace: ContextTrace, before: Sequence[str]) -> float:
    """beta' in [0, 1]: how far the chunks before it now are those that it was fused behind.

    before: isolated keys of the chunks that precede it in the prompt, in order.
    """
    total = sum(trace.by_neighbour)
    again = [(before.index(key), weight) for key, weight in _known(trace) if key in before]
    if not total or not again:
        return 0.0
    beta = sum(weight for _, weight in again) / total
    pairs = list(combinations([place for place, _ in again], 2))
    swapped = sum(first > second for first, second in pairs)
    return beta * (1.0 - swapped / len(pairs) if pairs else 1.0)


def share_out(budget: int, wanted: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to `wanted`, none above its size, `budget` in all.

    What rounding down leaves of the budget goes to the largest remainders.
    """
    shares = _proportional(budget, wanted, sizes)
    counts = [min(int(share), size) for share, size in zip(shares, sizes, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: (counts[i] - shares[i], i))
    for i in islice(cycle(order), len(order) * (budget - sum(counts))):
        if sum(counts) == budget:
            break
        if counts[i] < sizes[i]:
            counts[i] += 1
    return counts


def _proportional(budget: int, wanted: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """The same before rounding: what exceeds a size is shared among the others."""
    shares = [0.0] * len(sizes)
    rest, left = list(range(len(sizes))), float(budget)
    while rest:
        total = sum(wanted[i] for i in rest)
        # If none of the rest is wanted, all of it is wanted alike.
        for i in rest:
            shares[i] = left * (wanted[i] / total if total else 1 / len(rest))
        full = [i for i in rest if shares[i] > sizes[i]]
        if not full:
            break
        for i in full:
            shares[i] = float(sizes[i])
        left -= sum(sizes[i] for i in full)
        rest = [i for i in rest if i not in full]
    return shares


def _known(trace: ContextTrace) -> list[tuple[str, float]]:
    return list(zip(trace.neighbours, trace.by_neighbour, strict=True))


def _need(span: Span, before: Sequence[str]) -> float:
    trace = span.record.trace
    if trace is None:
        return 1.0
    # Isolated KV contains nothing of any context.
    overlap = prefix_overlap(trace, before) if span.variant == "fused" else 0.0
    return cache_context_impact(trace) * (1.0 - overlap)


def _most_attentive(spans: Sequence[Span], count: int) -> list[int]:
    """The `count` positions of a chunk with the most attention to others, the earlier first."""
    trace = spans[0].record.trace
    outside = {
        span.start + i: trace.outside[span.source_start + i] if trace else 0.0
        for span in spans
        for i in range(span.length)
    }
    return sorted(outside, key=lambda position: (-outside[position], position))[:count]
