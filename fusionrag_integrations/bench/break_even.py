"""From how many tokens on reuse pays: shorter prompts are sooner computed in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from fusionrag_integrations.bench.served import served_prompt
from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.bench.ttft import asker, take_turns
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.calibration import Calibration

CONTEXTS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
RATIO = 0.15
REPEAT = 5
SURE = 1.5  # a speed-up that longer prompts will not fall behind

FULL = Strategy("full_attention", "none", 1.0)
OURS = Strategy("fusionrag", "isolated", RATIO)


def measure_break_even(
    model: CausalModel, calibration: Calibration | None, progress: Callable[[int, int], None]
) -> tuple[int, dict[str, Any]]:
    """The length in tokens, and what was measured: speed-ups by length.

    KV is read from disk, from the prompt's text to the first token, as an engine does by default.
    """
    speedups: dict[int, float] = {}
    contexts = [tokens for tokens in CONTEXTS if tokens < model.context_window]
    for number, context in enumerate(contexts):
        progress(number, len(contexts))
        with served_prompt(model, context, "disk", calibration) as (pipeline, prompt):
            answers = take_turns(
                asker(model, pipeline, prompt), (FULL, OURS), REPEAT, lambda done, total: None
            )
        pairs = zip(answers[FULL], answers[OURS], strict=True)
        speedups[context] = median(full.ttft.total / ours.ttft.total for full, ours in pairs)
        if speedups[context] >= SURE:
            break
    progress(len(contexts), len(contexts))
    return break_even(list(speedups.items())), {
        "ratio": RATIO,
        "speedups": {str(tokens): round(value, 3) for tokens, value in speedups.items()},
    }


def break_even(speedups: Sequence[tuple[int, float]]) -> int:
    """The shortest measured length from which on reuse was always quicker.

    speedups: by length, ascending. Where even the longest was not, one more than that; 0 where all
    were.
    """
    slower = [number for number, (_, speedup) in enumerate(speedups) if speedup <= 1.0]
    if not slower:
        return 0
    first = slower[-1] + 1
    return speedups[first][0] if first < len(speedups) else speedups[-1][0] + 1
