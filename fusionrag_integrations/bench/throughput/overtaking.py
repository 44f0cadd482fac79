"""How long a short prompt waits for its first token while a long one is computed.

It is to wait for no more than the pass that is under way when it arrives, and to share its own
passes with the long one: two times what it takes alone, and one pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from fusionrag_integrations.bench.throughput.load import Outcome, closed_loop, open_loop
from fusionrag_integrations.bench.throughput.one_request import prefill_alone
from fusionrag_integrations.bench.throughput.plan import Plan
from fusionrag_integrations.bench.throughput.systems import answers_of, engine_systems
from fusionrag_integrations.bench.throughput.workload import QUESTION, Asked, Workload
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import FusionRAGError
from fusionrag_integrations.prompt import encode, question_as_prompt
from fusionrag_integrations.support.progress import Progress

SHORT_TOKENS = 100
LONG_TOKENS = 8000
MOMENTS = (0.2, 0.5, 0.8)  # of the long one's prefill, at which short ones arrive
_ALONE = 5


@dataclass(frozen=True, slots=True)
class ShortBehindLong:
    """At one ratio of recomputed tokens, in milliseconds.

    short_tokens, long_tokens: of the prompts. alone_ms: the short one's TTFT with nothing else at
    work, a median. pass_ms: the longest pass of the long one's prefill, alone. behind_ms: TTFT of
    short ones, each of which arrived while a long one had no token yet. of_limit: the longest of
    those by two times `alone_ms` and `pass_ms`; None where no short one arrived in time.
    """

    ratio: float
    short_tokens: int
    long_tokens: int
    alone_ms: float
    pass_ms: float
    behind_ms: tuple[float, ...]
    of_limit: float | None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> ShortBehindLong:
        """Of plain values, as `asdict` and JSON make them."""
        return cls(**{**plain, "behind_ms": tuple(plain["behind_ms"])})


def measure_overtaking(engine: FusionEngine, plan: Plan, progress: Progress) -> ShortBehindLong:
    """At the largest ratio of the plan. The long prompt has up to `LONG_TOKENS`, as far as the
    store has chunks and the model's context is long enough; the short one has no chunk.

    Raises `FusionRAGError` where one of the requests fails.
    """
    ratio, tokenizer = max(plan.ratios), engine.model.tokenizer
    long = _long(engine, plan)
    first, *shorts = [_short(tokenizer, number) for number in range(1 + _ALONE + len(MOMENTS))]
    _, passes = prefill_alone(engine, long, ratio, tokens=1)
    together, _ = engine_systems(engine, [ratio], tokens=1)
    with answers_of(engine.executor.model, 1), together.serve() as ask:
        _ttft(closed_loop(ask, [first], 1, clients=1))  # warms up
        alone = _ttft(closed_loop(ask, shorts[:_ALONE], 1, clients=1))
        behind = []
        for number, moment in enumerate(MOMENTS):
            progress("overtaking", number, len(MOMENTS))
            asked = [long, shorts[_ALONE + number]]
            outcome = open_loop(ask, asked, 1, [0.0, moment * sum(passes)])
            long_ttft, short_ttft = _ttft(outcome)
            if outcome.answered[1].arrived < outcome.answered[0].arrived + long_ttft:
                behind.append(short_ttft)
    progress("overtaking", len(MOMENTS), len(MOMENTS))
    limit = 2 * median(alone) + max(passes)
    return ShortBehindLong(
        ratio=ratio,
        short_tokens=len(shorts[0].token_ids),
        long_tokens=len(long.token_ids),
        alone_ms=1e3 * median(alone),
        pass_ms=1e3 * max(passes),
        behind_ms=tuple(1e3 * ttft for ttft in behind),
        of_limit=max(behind) / limit if behind else None,
    )


def _ttft(outcome: Outcome) -> list[float]:
    """Of each request, in seconds."""
    if outcome.errors:
        raise FusionRAGError(f"A short or a long prompt failed: {outcome.errors[0]}")
    return [timed.ttft for timed in outcome.answered]


def _long(engine: FusionEngine, plan: Plan) -> Asked:
    room = min(LONG_TOKENS, engine.context_window - 1)
    (long,) = Workload(engine, replace(plan, prompt_tokens=room, output_tokens=1)).requests(1, 4)
    return long


def _short(tokenizer: Any, number: int) -> Asked:
    """A prompt that only begins as others do, so that little of it is known from them."""
    question = f"{number}."
    while True:
        question = f"{question} {QUESTION}"
        prompt = question_as_prompt(tokenizer, [], question)
        token_ids = encode(tokenizer, prompt).token_ids
        if len(token_ids) >= SHORT_TOKENS:
            return Asked(prompt, tuple(token_ids))
