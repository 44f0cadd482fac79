"""What is put under load: the engine, which is asked by all clients at once, or one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

from transformers import GenerationConfig

from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.bench.throughput.load import Ask, TokenTimes
from fusionrag_integrations.bench.throughput.workload import Asked
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.execution.hf.model import CausalModel

TOGETHER = "fusionrag"  # the name of the engine that all clients ask at once

Serve = Callable[[], AbstractContextManager[Ask]]


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """One way to answer requests. way: how, where a name stands for several; ratio: of recomputed
    tokens, where some are. serve: makes it ready, gives what answers, and ends it.
    """

    name: str
    way: str
    ratio: float | None
    serve: Serve

    @property
    def label(self) -> str:
        """What no other system is called."""
        return f"{self.name}, {self.way}" + ("" if self.ratio is None else f", {self.ratio}")


def engine_systems(engine: FusionEngine, ratios: Sequence[float], tokens: int) -> list[System]:
    """The engine at each ratio, asked by all clients at once; and with a lock around it."""
    return [
        System(name, way, ratio, partial(serve, engine, ratio, tokens))
        for ratio in ratios
        for name, way, serve in (
            (TOGETHER, "together", _together),
            ("fusionrag_serial", "one at a time", _one_at_a_time),
        )
    ]


@contextmanager
def _together(engine: FusionEngine, ratio: float, tokens: int) -> Iterator[Ask]:
    """A token's time is when its text came; text that came with others' counts once."""
    settings = Strategy("fusionrag", "fused", ratio).settings(tokens)

    def ask(asked: Asked, times: TokenTimes) -> Sequence[int]:
        with closing(engine.stream(asked.prompt, settings)) as stream:
            for _ in stream:
                times.add()
            return stream.answer.token_ids

    yield ask


@contextmanager
def _one_at_a_time(engine: FusionEngine, ratio: float, tokens: int) -> Iterator[Ask]:
    lock = Lock()
    with _together(engine, ratio, tokens) as alone:

        def ask(asked: Asked, times: TokenTimes) -> Sequence[int]:
            with lock:
                times.check()
                return alone(asked, times)

        yield ask


@contextmanager
def answers_of(model: CausalModel, tokens: int) -> Iterator[None]:
    """Answers have so many tokens meanwhile, the likeliest ones: no token ends them.

    The model's generation config is replaced by one without end tokens or anything else, such as
    penalties, so that no system has more to do per token than another.
    """
    own = model.hf.generation_config
    model.hf.generation_config = config_of(own, tokens)
    try:
        yield
    finally:
        model.hf.generation_config = own


def config_of(own: GenerationConfig, tokens: int) -> Any:
    """A generation config for answers of so many tokens, with what pads another's."""
    ends = own.eos_token_id
    first_end = ends[0] if isinstance(ends, list) else ends
    padding = own.pad_token_id if own.pad_token_id is not None else first_end or 0
    return GenerationConfig(
        bos_token_id=own.bos_token_id,
        pad_token_id=padding,
        max_new_tokens=tokens,
        do_sample=False,
    )
