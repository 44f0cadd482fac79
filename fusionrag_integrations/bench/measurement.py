"""One question under one strategy, as it was measured."""

from __future__ import annotations

from dataclasses import dataclass

from fusionrag_integrations.bench.closeness import Closeness
from fusionrag_integrations.bench.inspection import Inspection
from fusionrag_integrations.bench.strategies import Strategy


@dataclass(frozen=True, slots=True)
class Measurement:
    """One question under one strategy.

    question: its number. right: whether the answer holds an accepted one. recomputed: chunk tokens.
    work: token-layers before the first token over full attention's. ttft_ms: milliseconds, where
    the question was timed. judged: the judge's score, where there is one.
    """

    question: int
    kind: str
    strategy: Strategy
    answer: str
    right: bool
    em: float
    f1: float
    rouge1: float
    closeness: Closeness
    recomputed: int
    work: float
    ttft_ms: float | None = None
    judged: float | None = None
    inspection: Inspection | None = None
