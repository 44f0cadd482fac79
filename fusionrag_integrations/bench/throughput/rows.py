"""What systems did under loads, as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from fusionrag_integrations.bench.throughput.load import Outcome
from fusionrag_integrations.bench.throughput.memory import PeakMemory
from fusionrag_integrations.bench.throughput.systems import System


@dataclass(frozen=True, slots=True)
class Load:
    """clients: of a closed loop; or share: of a system's peak, at which requests arrive."""

    clients: int | None
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """One system under one load in one round. host, device: the most memory, in bytes."""

    outcome: Outcome
    host: int | None
    device: int | None

    @classmethod
    def with_memory(cls, outcome: Outcome, memory: PeakMemory) -> Measured:
        """An outcome, and the memory that it took up to now."""
        return cls(outcome, memory.host, memory.device)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Measured:
        """Of plain values, as `asdict` and JSON make them."""
        return cls(Outcome.of(plain["outcome"]), plain["host"], plain["device"])


@dataclass(frozen=True, slots=True)
class ThroughputRow:
    """One system under one load, over all rounds.

    ratio: of recomputed tokens, None for full attention. clients: of a closed loop; or
    arrivals_per_s and share: of an open one. requests_per_s, tokens_per_s: medians of the rounds;
    spread_requests_per_s: the lowest and the highest. ttft: from a request's arrival, waiting
    included; tbt: between the tokens of an answer; percentiles are of all rounds' together, in
    milliseconds, and None where nothing was answered. peak_bytes: the process's resident set at its
    largest, which all systems share; peak_device_bytes: of tensors on the GPU. errors: requests
    that failed; first_error: what the first one said.
    """

    system: str
    way: str
    ratio: float | None
    clients: int | None
    arrivals_per_s: float | None
    share: float | None
    requests_per_s: float
    spread_requests_per_s: tuple[float, float]
    tokens_per_s: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tbt_p50_ms: float | None
    tbt_p99_ms: float | None
    peak_bytes: int | None
    peak_device_bytes: int | None
    errors: int
    first_error: str


def throughput_row(
    system: System,
    load: Load,
    arrivals_per_s: float | None,
    tokens: int,
    rounds: Sequence[Measured],
) -> ThroughputRow:
    """tokens: of each answer."""
    outcomes = [measured.outcome for measured in rounds]
    rates = [outcome.requests_per_s for outcome in outcomes]
    answered = [timed for outcome in outcomes for timed in outcome.answered]
    ttft = [timed.ttft for timed in answered]
    gaps = [gap for timed in answered for gap in timed.gaps]
    errors = [error for outcome in outcomes for error in outcome.errors]
    return ThroughputRow(
        system=system.name,
        way=system.way,
        ratio=system.ratio,
        clients=load.clients,
        arrivals_per_s=arrivals_per_s,
        share=load.share,
        requests_per_s=median(rates),
        spread_requests_per_s=(min(rates), max(rates)),
        tokens_per_s=tokens * median(rates),
        ttft_p50_ms=percentile_ms(ttft, 50),
        ttft_p99_ms=percentile_ms(ttft, 99),
        tbt_p50_ms=percentile_ms(gaps, 50),
        tbt_p99_ms=percentile_ms(gaps, 99),
        peak_bytes=_most([measured.host for measured in rounds]),
        peak_device_bytes=_most([measured.device for measured in rounds]),
        errors=len(errors),
        first_error=errors[0] if errors else "",
    )


def percentile_ms(seconds: Sequence[float], percent: float) -> float | None:
    """A percentile in milliseconds, between values by straight lines; None of no values."""
    return float(1e3 * np.percentile(seconds, percent)) if seconds else None


def _most(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return max(known, default=None)
