"""One request with nothing else at work: what bounds and limits are made of."""

from __future__ import annotations

from time import perf_counter

from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.bench.throughput.systems import answers_of
from fusionrag_integrations.bench.throughput.workload import Asked
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.execution.devices import settle
from fusionrag_integrations.serving.alone import AtOnce
from fusionrag_integrations.serving.request import Request, Stage
from fusionrag_integrations.serving.scheduler import Scheduler

_BEFORE_PASSES = (Stage.PREPARE, Stage.READ, Stage.CAPTURE)


def prefill_alone(
    engine: FusionEngine, asked: Asked, ratio: float, tokens: int
) -> tuple[Request, list[float]]:
    """A request up to its first token, and the seconds that each pass of its prefill took.

    tokens: of its answer at most. With more than one it is about to decode, and holds its KV until
    it is closed; with one it is done. Raises what ends it before that.
    """
    settings = Strategy("fusionrag", "fused", ratio).settings(tokens)
    scheduler = Scheduler(engine.pipeline, engine.serving.limits, AtOnce())
    request = engine.pipeline.request(asked.prompt, settings)
    with answers_of(engine.executor.model, tokens):
        scheduler.add(request)  # prepares it
    passes = []
    while not (request.over or request.stage is Stage.DECODE):
        started = perf_counter()
        scheduler.step()
        settle(engine.model.device)
        if request.work or request.stage not in _BEFORE_PASSES:
            passes.append(perf_counter() - started)
    while request.over and request.pieces.get() is not None:  # raises what has ended it
        pass
    return request, passes
