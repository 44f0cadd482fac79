"""Systems take turns under every load, so that the machine's drift touches all alike.

1. The fullest closed loop, once for every system and every way to compute full attention. The way
   that answers most requests a second there goes on, into the other rounds, too; the others don't,
   nor does llama.cpp. What the engine could reach there is measured, and how long short prompts
   wait behind long ones.
2. The other closed loops. A system's peak is the best of all of its closed loops.
3. Open loops, at shares of each system's own peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fusionrag_integrations.bench.machine import described, where_and_when
from fusionrag_integrations.bench.throughput.bound import Bound, measure_bound
from fusionrag_integrations.bench.throughput.dense import dense_systems
from fusionrag_integrations.bench.throughput.kept import Kept
from fusionrag_integrations.bench.throughput.llama_cpp import llama_cpp_systems
from fusionrag_integrations.bench.throughput.load import closed_loop, open_loop
from fusionrag_integrations.bench.throughput.memory import PeakMemory
from fusionrag_integrations.bench.throughput.overtaking import (
    ShortBehindLong,
    measure_overtaking,
)
from fusionrag_integrations.bench.throughput.plan import Plan
from fusionrag_integrations.bench.throughput.rows import (
    Load,
    Measured,
    ThroughputRow,
    throughput_row,
)
from fusionrag_integrations.bench.throughput.systems import (
    TOGETHER,
    System,
    answers_of,
    engine_systems,
)
from fusionrag_integrations.bench.throughput.workload import Asked, Workload, poisson
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.support.progress import Progress

_WARM_UP = 2  # requests of each system, at once


def measure_throughput(
    engine: FusionEngine, plan: Plan, progress: Progress, log: Path | None = None
) -> dict[str, Any]:
    """Every system under every load, over chunks of the engine's store, as plain values.

    log: a file which keeps what is measured, so that an interrupted run goes on from it.

    Raises `InvalidInputError` for a store without chunks, prompts that the model can't hold, and
    the log of another run. A request that fails is counted, and ends nothing.
    """
    where = where_and_when() | described(engine.executor.model)
    catalog = engine.store.catalog
    asked = {"signature": catalog.info.signature, "texts": catalog.texts_revision}
    identity = {name: where[name] for name in where if name != "date"} | asked
    kept = Kept(log, identity | {"plan": asdict(plan)})
    with answers_of(engine.executor.model, plan.output_tokens):
        run = _Run(engine, plan, progress, kept)
        run.warm_up()
        return where | run.measure()


class _Run:
    """Rows as they are measured, in order."""

    def __init__(self, engine: FusionEngine, plan: Plan, progress: Progress, kept: Kept) -> None:
        self._engine = engine
        self._plan = plan
        self._progress = progress
        self._kept = kept
        self._workload = Workload(engine, plan)
        self._ours = engine_systems(engine, plan.ratios, plan.output_tokens)
        self._dense = dense_systems(engine.executor.model, plan)
        self._llama_cpp = llama_cpp_systems(engine.executor.model, plan)
        self._found: dict[tuple[System, Load], list[Measured]] = {}
        self._rows: dict[tuple[System, Load], ThroughputRow] = {}
        self._prompt_tokens: list[int] = []

    def warm_up(self) -> None:
        """Read the chunks' KV, as far as memory is for it, and let every system answer."""
        wanted = {record.chunk.id for record in self._workload.records}
        for chunk_id, *keys in self._engine.store.catalog.kv.keys_by_chunk():
            for key in keys if chunk_id in wanted else ():
                if key:
                    with self._engine.kv.lease() as lease:
                        lease.get(key, complete=True)
        systems = (*self._ours, *self._dense, *self._llama_cpp)
        for number, system in enumerate(systems):
            self._progress("warm-up", number, len(systems))
            with system.serve() as ask:
                requests = self._requests(_WARM_UP, 0)
                closed_loop(ask, requests, self._plan.output_tokens, _WARM_UP)
        self._progress("warm-up", len(systems), len(systems))

    def measure(self) -> dict[str, Any]:
        """What was measured, and how."""
        plan, fullest = self._plan, Load(self._plan.most_clients)
        every = [*self._ours, *self._dense, *self._llama_cpp]
        self._take_turns("fullest", every, [fullest], range(1))
        fastest = max(self._dense, key=lambda way: self._rows[way, fullest].requests_per_s)
        systems = [*self._ours, fastest]
        if plan.rounds > 1:
            self._take_turns("fullest", systems, [fullest], range(1, plan.rounds))
        limits = self._limits(fullest)
        rounds = range(plan.rounds)
        others = [Load(count) for count in dict.fromkeys(plan.clients) if count != fullest.clients]
        self._take_turns("closed", systems, others, rounds)
        peaks = {system: self._peak(system) for system in systems}
        answering = [system for system in systems if peaks[system] > 0.0]
        shares = [Load(None, share) for share in plan.shares]
        self._take_turns("open", answering, shares, rounds, peaks)
        return {
            "settings": asdict(plan)
            | {
                "chunks": len(self._workload.records),
                "longest_prompt": max(self._prompt_tokens),
                "shortest_prompt": min(self._prompt_tokens),
            },
            "fastest_full_attention": fastest.way,
            "rows": [asdict(row) for row in self._rows.values()],
            **limits,
        }

    def _limits(self, fullest: Load) -> dict[str, Any]:
        """What the engine could reach at each ratio, and how long short prompts wait behind long
        ones at the largest; as far as it answers.
        """
        plan, engine = self._plan, self._engine
        reached = {
            system.ratio: rate
            for system in self._ours
            if system.name == TOGETHER and system.ratio is not None
            if (rate := self._rows[system, fullest].requests_per_s)
        }
        requests = self._workload.requests(plan.most_clients, 3)
        bounds = []
        for number, (ratio, rate) in enumerate(reached.items()):
            self._progress("bounds", number, len(reached))
            bound = partial(measure_bound, engine, ratio, rate, requests, plan.output_tokens)
            bounds.append(self._kept.once(f"bound at {ratio}", bound, Bound.of))
        self._progress("bounds", len(reached), len(reached))
        overtaking = None
        if max(plan.ratios) in reached:
            behind = partial(measure_overtaking, engine, plan, self._progress)
            overtaking = self._kept.once("short behind long", behind, ShortBehindLong.of)
        return {
            "bounds": [asdict(bound) for bound in bounds],
            "short_behind_long": overtaking and asdict(overtaking),
        }

    def _take_turns(
        self,
        stage: str,
        systems: Sequence[System],
        loads: Sequence[Load],
        rounds: range,
        peaks: dict[System, float] | None = None,
    ) -> None:
        """Every system under every load, in these rounds. peaks: requests a second, for open loops.

        The system that goes first changes from load to load.
        """
        rates = peaks or {}
        total, done = len(rounds) * len(loads) * len(systems), 0
        for turn in rounds:
            for number, load in enumerate(loads, start=turn):
                at = number % len(systems) if systems else 0
                requests = self._requests_of(load, turn)
                for system in (*systems[at:], *systems[:at]):
                    self._progress(stage, done, total)
                    peak = rates.get(system, 0.0)
                    measured = self._kept.once(
                        f"{system.label} under {load}, round {turn}",
                        partial(self._measured, system, load, requests, peak, turn),
                        Measured.of,
                    )
                    self._found.setdefault((system, load), []).append(measured)
                    done += 1
        self._progress(stage, total, total)
        for load in loads:
            for system in systems:
                arrivals = None if load.share is None else load.share * rates[system]
                self._rows[system, load] = throughput_row(
                    system, load, arrivals, self._plan.output_tokens, self._found[system, load]
                )

    def _measured(
        self, system: System, load: Load, requests: Sequence[Asked], peak: float, turn: int
    ) -> Measured:
        tokens = self._plan.output_tokens
        with system.serve() as ask:
            memory = PeakMemory(self._engine.model.device)
            if load.clients is not None:
                outcome = closed_loop(ask, requests, tokens, load.clients)
            else:
                share = load.share or 0.0
                stream = (self._plan.seed, turn, round(1e6 * share))
                arrivals = poisson(len(requests), share * peak, *stream)
                outcome = open_loop(ask, requests, tokens, arrivals)
            return Measured.with_memory(outcome, memory)

    def _peak(self, system: System) -> float:
        return max(row.requests_per_s for (one, _), row in self._rows.items() if one == system)

    def _requests_of(self, load: Load, turn: int) -> list[Asked]:
        """The same for every system, and others under every load and in every round."""
        if load.clients is None:
            return self._requests(self._plan.requests, 2, turn, round(1e6 * (load.share or 0.0)))
        return self._requests(self._plan.requests_of(load.clients), 1, turn, load.clients)

    def _requests(self, count: int, *stream: int) -> list[Asked]:
        requests = self._workload.requests(count, *stream)
        self._prompt_tokens += [len(asked.token_ids) for asked in requests]
        return requests
