"""What a request waits for, from each tier that it can start from, with and without a prefetch.

    prefetch ... gap: the prompt is being made ... request: find chunks, load, place, run layers

A request waits for reads as it loads, and for layers that have not come when it needs them. As
much of that as there is room for in the gap, a prefetch can hide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import sleep
from typing import Any, Literal, get_args

from benchmarks.store_reads import Progress, drop_cached
from fusionrag_integrations.bench.clock import quartiles
from fusionrag_integrations.bench.served import InventedStore
from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.bench.ttft import from_spans
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.alone import answer_alone
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.serving.pipeline import Pipeline
from fusionrag_integrations.store.calibration import Calibration
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.kv.tiered_kv import TieredKV

Start = Literal["cold disk", "warm disk", "host", "device"]
STARTS: tuple[Start, ...] = get_args(Start)
NO_CHUNKS = "Good morning!"


@dataclass(frozen=True, slots=True)
class PrefetchRow:
    """Requests that found their KV in one tier. Milliseconds, medians over rounds.

    ttft_ms: from token ids and the places of chunks among them, as `bench ttft` counts; spread: the
    quartiles. read_ms: what reads took, added up over threads. waited_ms: what the request waited
    for them. fits_ms: as much of what it waits without prefetch as there is room for in the gap.
    hidden: the share of that which is not waited for with prefetch; None where nothing has to be
    read. Reads also go on while a request finds its chunks: no more than all counts.
    """

    tier: Start
    prefetch: bool
    ttft_ms: float
    spread_ms: tuple[float, float]
    read_ms: float
    waited_ms: float
    fits_ms: float | None = None
    hidden: float | None = None


def measure_prefetch(
    store: InventedStore,
    ratio: float,
    gap_ms: float,
    repeat: int,
    calibration: Calibration | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Requests from every tier, in turns. ratio: of chunk tokens that they recompute."""
    requests = _Requests(store, ratio, gap_ms, calibration)
    asked = [(start, prefetch) for start in STARTS for prefetch in (False, True)]
    found: dict[tuple[Start, bool], list[Times]] = {one: [] for one in asked}
    total = (repeat + 1) * len(asked)
    for turn in range(repeat + 1):  # the first one warms up
        for number, (start, prefetch) in enumerate(asked, start=1):
            times = requests.run(start, prefetch)
            if turn:
                found[start, prefetch].append(times)
            progress(turn * len(asked) + number, total)
    return [
        asdict(row)
        for start in STARTS
        for row in rows_of(start, found[start, False], found[start, True], gap_ms)
    ]


@dataclass(frozen=True, slots=True)
class Times:
    """Of one request, in milliseconds."""

    ttft: float
    read: float
    waited: float


class _Requests:
    """Runs single requests, each of which finds all of its KV where it is said to be."""

    def __init__(
        self, store: InventedStore, ratio: float, gap_ms: float, calibration: Calibration | None
    ) -> None:
        self._store = store
        self._settings = Strategy("fusionrag", "isolated", ratio).settings(max_tokens=1)
        self._gap = gap_ms / 1e3
        self._calibration = calibration
        self._warm: dict[Start, TieredKV] = {
            "host": store.tiers_at("host"),
            "device": store.tiers_at("device"),
        }

    def run(self, start: Start, prefetch: bool) -> Times:
        """One request, which comes when the gap is over."""
        warm = self._warm.get(start)
        kv = self._store.tiers(Budgets(device=0, host=None)) if warm is None else warm
        pipeline = self._store.pipeline(kv, self._calibration)
        self._answer(pipeline, NO_CHUNKS)  # now it knows the texts of all chunks
        if start == "cold disk":
            drop_cached(self._store.directory.paths())
        before = kv.metrics()
        if prefetch:
            kv.prefetch(self._store.keys)
        sleep(self._gap)
        ttft = self._answer(pipeline, self._store.prompt).ttft
        after = kv.metrics()
        if warm is None:
            kv.close()
        return Times(
            from_spans(ttft),
            after.disk.moved_ms - before.disk.moved_ms,
            after.waited_ms - before.waited_ms + ttft.load,
        )

    def _answer(self, pipeline: Pipeline, prompt: Prompt) -> Answer:
        return answer_alone(pipeline, prompt, self._settings)


def rows_of(
    start: Start, without: Sequence[Times], behind: Sequence[Times], gap_ms: float
) -> list[PrefetchRow]:
    """Two rows of a tier: requests without a prefetch, and those behind one, round by round."""
    fits = [min(gap_ms, one.waited) for one in without]
    if min(fits) > 0.0 and min(one.read for one in without) > 0.0:
        hidden = median(
            min(1.0, (one.waited - other.waited) / fit)
            for one, other, fit in zip(without, behind, fits, strict=True)
        )
        return [_row(start, False, without), _row(start, True, behind, median(fits), hidden)]
    return [_row(start, False, without), _row(start, True, behind)]


def _row(
    start: Start,
    prefetch: bool,
    times: Sequence[Times],
    fits_ms: float | None = None,
    hidden: float | None = None,
) -> PrefetchRow:
    ttfts = [one.ttft for one in times]
    read_ms = median(one.read for one in times)
    waited_ms = median(one.waited for one in times)
    spread = quartiles(ttfts)
    return PrefetchRow(start, prefetch, median(ttfts), spread, read_ms, waited_ms, fits_ms, hidden)
