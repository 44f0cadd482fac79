"""The most requests a second that the engine's own work allows, were nothing lost in between.

A request costs its prompt's time, as it takes alone, and for each further token its part of a
decode step, which all that are at work share:

    requests a second = 1 / (prefill + (tokens - 1) * step / clients)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median
from time import perf_counter
from typing import Any

from fusionrag_integrations.bench.clock import times_ms
from fusionrag_integrations.bench.throughput.one_request import prefill_alone
from fusionrag_integrations.bench.throughput.workload import Asked
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.execution.steps import DecodeRow
from fusionrag_integrations.serving.request import Request

_PROMPTS = 5  # whose prefill is timed
_STEPS = 12  # on CUDA the first few aren't graphs yet


@dataclass(frozen=True, slots=True)
class Bound:
    """Of requests at one ratio of recomputed tokens.

    clients: that share decode steps. prefill_ms: of a prompt alone, its chunks in memory, from text
    to the first token; step_ms: of a decode step of so many; both are medians. requests_per_s: what
    they allow; reached: which share of it the fullest closed loop has.
    """

    ratio: float
    clients: int
    prefill_ms: float
    step_ms: float
    requests_per_s: float
    reached: float

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Bound:
        """Of plain values, as `asdict` and JSON make them."""
        return cls(**plain)


def measure_bound(
    engine: FusionEngine, ratio: float, reached: float, requests: Sequence[Asked], tokens: int
) -> Bound:
    """reached: requests a second in the fullest closed loop. requests: as many as its clients;
    steps are of as many of them as the engine computes at once. tokens: of each answer.
    """
    together = requests[: _at_once(engine, requests, tokens)]
    step_ms = _step_ms(engine, ratio, together, tokens)
    prefill_ms = _prefill_ms(engine, ratio, together)  # by now their chunks are in memory
    most = 1e3 / (prefill_ms + (tokens - 1) * step_ms / len(together))
    return Bound(ratio, len(together), prefill_ms, step_ms, most, reached / most)


def _at_once(engine: FusionEngine, requests: Sequence[Asked], tokens: int) -> int:
    """How many of these requests the engine lets in, while the others wait."""
    limits = engine.serving.limits
    longest = max(len(asked.token_ids) for asked in requests) + tokens
    room = limits.kv_bytes / (longest * engine.model.kv_bytes)
    return int(max(1, min(len(requests), limits.requests, room)))


def _step_ms(engine: FusionEngine, ratio: float, requests: Sequence[Asked], tokens: int) -> float:
    """A decode step of these requests, each behind its own prompt."""
    with ExitStack() as closing:
        rows = []
        for asked in requests:
            # One token more, so that none ends with its first.
            request, _ = prefill_alone(engine, asked, ratio, tokens + 1)
            closing.callback(request.close)
            rows.append(_row(request))
        step = engine.executor.decode
        return median(times_ms(lambda: step(rows).argmax(-1), _STEPS, engine.model.device))


def _row(request: Request) -> DecodeRow:
    return DecodeRow(*request.last_token, request.kv)


def _prefill_ms(engine: FusionEngine, ratio: float, requests: Sequence[Asked]) -> float:
    """A prompt alone."""
    times = []
    for asked in islice(cycle(requests), _PROMPTS):
        started = perf_counter()
        prefill_alone(engine, asked, ratio, tokens=1)
        times.append(1e3 * (perf_counter() - started))
    return median(times)
