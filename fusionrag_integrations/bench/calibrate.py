"""Measure which layers and signals tell one model best what to recompute.

No accepted answers are needed: a choice of tokens is good if the model, having recomputed them,
finds likely what it answers under full attention. What is measured is that answer's
log-likelihood, mean over its tokens and over questions, at `RATIO`: a third of the usual ratio,
where calibrations differ more. It is measured over isolated KV and over fused KV, which should be
fused behind the wrong neighbours: behind the right ones there is hardly anything to repair.

First each layer by itself; then the best few together, with and without whole sentences and
sensitivity, which cost nothing. Of what doesn't differ from the best by more than its standard
error, what stops at the lowest layer is taken, and of that the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import sqrt
from statistics import mean, stdev
from typing import Any, get_args

from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.fidelity import ReusedPrompt, answer_fully
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.selectors import FusionRAGScorer, TopScores, middle_layers
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.store.calibration import Calibration

RATIO = 0.05
MAX_TOKENS = 16
MOST_LAYERS = 4
ROUNDS = 2
EXPONENTS = (0.0, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """A calibration, and what each question said of it: log-likelihoods, higher is better."""

    calibration: Calibration
    scores: tuple[float, ...]


def calibrate(
    engine: FusionEngine, prompts: Sequence[Prompt], progress: Callable[[int, int], None]
) -> tuple[Calibration, dict[str, Any]]:
    """The best calibration for the engine's model, and what was measured on the way.

    The engine's store must hold the prompts' chunks, fused behind others than those that belong
    before them. Raises `InvalidInputError` for fewer than two
    prompts with stored chunks.
    """
    if len(prompts) < 2:
        raise InvalidInputError(f"Calibrating needs 2 questions at least; got {len(prompts)}.")
    total = ROUNDS * len(prompts)

    def measure(done: int, calibrations: Iterable[Calibration]) -> list[Trial]:
        return _measure(engine, prompts, calibrations, lambda count: progress(done + count, total))

    layers = range(engine.executor.model.num_layers)
    single = measure(0, [Calibration(layers=(layer,)) for layer in layers])
    ranked = sorted(single, key=lambda trial: -mean(trial.scores))
    best = [trial.calibration.layers[0] for trial in ranked[:MOST_LAYERS]]
    sets = [tuple(sorted(best[:count])) for count in range(1, len(best) + 1)]
    sets += [middle_layers(engine.executor.model), tuple(layers)]
    options = product(dict.fromkeys(sets), (False, True), EXPONENTS)
    together = measure(len(prompts), [Calibration(*option) for option in options])
    progress(total, total)
    return cheapest_of_the_best(together).calibration, {
        "questions": len(prompts),
        "ratio": RATIO,
        "trials": [
            asdict(trial.calibration) | {"log_likelihood": round(mean(trial.scores), 4)}
            for trial in (*single, *together)
        ],
    }


def cheapest_of_the_best(trials: Sequence[Trial]) -> Trial:
    """The best of the shallowest trials that are within their standard error of the best of all.

    The error is of the difference, question by question.
    """
    best = max(trials, key=lambda trial: mean(trial.scores))

    def close(trial: Trial) -> bool:
        behind = [b - t for b, t in zip(best.scores, trial.scores, strict=True)]
        return mean(behind) <= stdev(behind) / sqrt(len(behind))

    near = filter(close, trials)
    return min(near, key=lambda trial: (trial.calibration.layers[-1], -mean(trial.scores)))


def _measure(
    engine: FusionEngine,
    prompts: Sequence[Prompt],
    calibrations: Iterable[Calibration],
    progress: Callable[[int], None],
) -> list[Trial]:
    scores: dict[Calibration, list[float]] = {calibration: [] for calibration in calibrations}
    for number, prompt in enumerate(prompts):
        progress(number)
        subjects = [_Subject(engine, prompt, kv) for kv in get_args(KVKind)]
        for calibration, found in scores.items():
            found.append(mean(subject.likelihood(calibration) for subject in subjects))
    return [Trial(calibration, tuple(found)) for calibration, found in scores.items()]


class _Subject:
    """A question over stored KV, with what the model answers under full attention."""

    def __init__(self, engine: FusionEngine, prompt: Prompt, kv: KVKind) -> None:
        loaded = engine.load(prompt, AnswerSettings(kv=kv))
        full = answer_fully(engine.executor, loaded.prompt.token_ids, MAX_TOKENS)
        text = engine.model.tokenizer.decode(full.token_ids, skip_special_tokens=True)
        if not loaded.prompt.spans or not text:
            raise InvalidInputError(
                "A calibrating question has no chunk of the store in its prompt, or no answer: "
                f"{prompt!r:.200}"
            )
        self._reused = ReusedPrompt(
            engine.executor, loaded.prompt, loaded.kvs, full, MAX_TOKENS, corrected=True
        )

    def likelihood(self, calibration: Calibration) -> float:
        """Mean log-likelihood of the answer's tokens once the chosen tokens are recomputed."""
        followed = self._reused.follow(TopScores(RATIO, FusionRAGScorer(calibration)))
        return float(followed.log_likelihood.mean())
