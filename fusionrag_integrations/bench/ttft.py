"""Time to first token, beside the model's own dense prefill and beside the limit.

Prompts are of invented chunks (`served.py`). Strategies take turns, so that the machine's drift
touches all alike. Two clocks:

ttft_ms       from token ids and the places of chunks among them to the first token
from_text_ms  from the prompt's text
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any, get_args

import numpy as np

from fusionrag_integrations.bench.ceilings import Ceilings
from fusionrag_integrations.bench.clock import quartiles
from fusionrag_integrations.bench.machine import described, where_and_when
from fusionrag_integrations.bench.prefix_cache import PrefixCache
from fusionrag_integrations.bench.served import Tier, served_prompt
from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.alone import answer_alone
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.serving.pipeline import Pipeline
from fusionrag_integrations.serving.usage import TTFTBreakdown
from fusionrag_integrations.store.calibration import Calibration


@dataclass(frozen=True, slots=True)
class TTFTRow:
    """One strategy over one context. Times are medians in milliseconds; spread: the quartiles.

    ratio: of chunk tokens recomputed; context: the prompt's tokens. speedup: the median, over
    repeats, of full attention's `ttft_ms` over this one's. limit_ms: see `Ceilings`.
    """

    strategy: str
    ratio: float
    context: int
    kv: str
    ttft_ms: float
    spread_ms: tuple[float, float]
    from_text_ms: float
    speedup: float
    limit_ms: float
    rows: int
    attended: int
    breakdown: dict[str, float]


def measure_ttft(
    model: CausalModel,
    contexts: Sequence[int],
    strategies: Sequence[Strategy],
    tier: Tier,
    repeat: int,
    calibration: Calibration | None,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Every strategy over prompts of about so many tokens; the first strategy is the reference.

    Raises `InvalidInputError` for an unknown tier, and for a context that the model can't hold.
    """
    if tier not in get_args(Tier):
        raise InvalidInputError(f"Unknown kv {tier!r}; choose {', '.join(get_args(Tier))}.")
    rows: list[TTFTRow] = []
    for context in contexts:
        ceilings = Ceilings(model, context, moves=tier != "device")
        with served_prompt(model, context, tier, calibration) as (pipeline, prompt):
            step = partial(progress, f"{context:,}")
            answers = take_turns(asker(model, pipeline, prompt), strategies, repeat, step)
        for strategy in strategies:
            rows.append(_row(strategy, tier, answers, strategies[0], ceilings))
    return where_and_when() | {
        **described(model),
        "dense_attention": "sdpa",
        "repeat": repeat,
        "rows": [asdict(row) for row in rows],
        "fit": fit(rows, model.num_layers),
    }


def fit(rows: Sequence[TTFTRow], layers: int) -> dict[str, float] | None:
    """TTFT as a fixed time, one a computed row, and one an attended key; None for too few rows."""
    reused = [row for row in rows if row.strategy != "full_attention"]
    if len({row.rows for row in reused}) < 4:
        return None
    facts = np.array([[1.0, row.rows, row.attended * layers] for row in reused])
    times = np.array([row.ttft_ms for row in reused])
    solution, *_ = np.linalg.lstsq(facts / facts.max(0), times, rcond=None)
    off = times - facts / facts.max(0) @ solution
    fixed, a_row, a_key = solution / facts.max(0)
    return {
        "fixed_ms": float(fixed),
        "ms_a_row": float(a_row),
        "ms_a_million_keys": float(a_key * 1e6),
        "r_squared": float(1 - off.var() / times.var()),
    }


Ask = Callable[[Strategy], Answer]


def asker(model: CausalModel, pipeline: Pipeline, prompt: Prompt) -> Ask:
    """A function that answers a prompt with one token, by the strategy that it is given."""
    cache = PrefixCache(model)

    def ask(strategy: Strategy) -> Answer:
        settings = strategy.settings(max_tokens=1)
        if strategy.kv == "prefix":
            return cache.answer(prompt, settings.sampling)
        return answer_alone(pipeline, prompt, settings)

    return ask


def take_turns(
    ask: Ask,
    strategies: Sequence[Strategy],
    repeat: int,
    progress: Callable[[int, int], None],
) -> dict[Strategy, list[Answer]]:
    """Each strategy's answers, one a round; the first round warms up and isn't counted."""
    answers: dict[Strategy, list[Answer]] = {strategy: [] for strategy in strategies}
    total = (repeat + 1) * len(strategies)
    for turn in range(repeat + 1):
        at = turn % len(strategies)
        for count, strategy in enumerate((*strategies[at:], *strategies[:at])):
            progress(turn * len(strategies) + count, total)
            answer = ask(strategy)
            if turn:
                answers[strategy].append(answer)
    progress(total, total)
    return answers


def _row(
    strategy: Strategy,
    tier: Tier,
    answers: dict[Strategy, list[Answer]],
    reference: Strategy,
    ceilings: Ceilings,
) -> TTFTRow:
    mine = answers[strategy]
    times = [from_spans(answer.ttft) for answer in mine]
    usage = mine[0].usage
    rows = usage.fresh_tokens + usage.recomputed_tokens
    chunk_tokens = 0 if strategy.kv == "none" else usage.prompt_tokens - usage.fresh_tokens
    # The fresh tokens stand behind the chunks, and the recomputed ones are spread over them.
    attended = (
        usage.recomputed_tokens * usage.prompt_tokens // 2
        + usage.fresh_tokens * usage.prompt_tokens
        if chunk_tokens
        else usage.prompt_tokens * (usage.prompt_tokens + 1) // 2
    )
    parts = [asdict(answer.ttft) for answer in mine]
    return TTFTRow(
        strategy=strategy.name,
        ratio=strategy.ratio,
        context=usage.prompt_tokens,
        kv=tier if chunk_tokens else "none",
        ttft_ms=median(times),
        spread_ms=quartiles(times),
        from_text_ms=median(answer.ttft.total for answer in mine),
        speedup=median(
            from_spans(other.ttft) / time
            for other, time in zip(answers[reference], times, strict=True)
        ),
        limit_ms=ceilings.limit(rows, attended, chunk_tokens),
        rows=rows,
        attended=attended,
        breakdown={name: median(part[name] for part in parts) for name in parts[0]},
    )


def from_spans(ttft: TTFTBreakdown) -> float:
    """Milliseconds from token ids and the places of chunks among them to the first token."""
    return ttft.total - ttft.encode - ttft.match
