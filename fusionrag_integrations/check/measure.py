"""One question under every way of reuse, compared with full attention.

Full attention answers once, greedily. Each way then computes that answer's tokens over its own KV.
Times are those of separate answers by the engine, since these comparisons share work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from fusionrag_integrations.check.echo import counted_tokens
from fusionrag_integrations.check.questions import StoreQuestion
from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.fidelity import (
    Followed,
    FullAnswer,
    ReusedPrompt,
    answer_fully,
)
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.selectors import make_selector
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.serving.loading import LoadedPrompt
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.text_stream import text_pieces
from fusionrag_integrations.store.calibration import Calibration
from fusionrag_integrations.store.store import Store

MAX_TOKENS = 32

# The ways that are compared, one for each row of the report.
FULL_ATTENTION = AnswerSettings(kv="none", break_even=False)
PLAIN_REUSE = AnswerSettings(
    kv="isolated", corrected=False, selector="none", ratio=0.0, break_even=False
)
WAYS = (
    PLAIN_REUSE,
    *(AnswerSettings(kv="fused", ratio=ratio, break_even=False) for ratio in (0.0, 0.05, 0.15)),
)
# Over the KV that deviates most, so that a token that isn't recomputed shows.
EVERYTHING = replace(PLAIN_REUSE, selector="all", ratio=1.0)


class Checkable(Protocol):
    """What a check uses of an engine."""

    @property
    def executor(self) -> Executor: ...

    @property
    def store(self) -> Store: ...

    @property
    def calibration(self) -> Calibration | None: ...

    def load(self, prompt: Prompt, settings: AnswerSettings) -> LoadedPrompt: ...

    def answer(self, prompt: Prompt, settings: AnswerSettings) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one way agrees with full attention's answer.

    tokens: of that answer. agreed: how many of them are also the likeliest under this way.
    divergence: in nats, summed over the tokens that do more than repeat the question.
    """

    tokens: int
    agreed: int
    divergence: float

    @property
    def equal(self) -> bool:
        """Whether this way's own greedy answer would be the same."""
        return self.agreed == self.tokens


@dataclass(frozen=True, slots=True)
class Measured:
    """One question. outcomes: by `WAYS`. deviation: with everything recomputed, if it was measured.

    without_kv: ids of its chunks whose KV is missing or can't be used.
    """

    prompt_tokens: int
    outcomes: tuple[Outcome, ...]
    deviation: float | None
    without_kv: frozenset[str]


def measure(engine: Checkable, question: StoreQuestion, recompute_everything: bool) -> Measured:
    """Ask one question in every way. Raises `StoreError` where its chunks have no KV."""
    reused = _Reused(engine, question)
    full = reused.full
    pieces = text_pieces(engine.executor.model.tokenizer, full.token_ids)
    counts = counted_tokens(pieces, question.question)
    outcomes = tuple(
        Outcome(
            tokens=len(full.token_ids),
            agreed=sum(a == b for a, b in zip(one.greedy, full.token_ids, strict=True)),
            divergence=float(one.divergence[counts].sum()),
        )
        for one in map(reused.follow, WAYS)
    )
    return Measured(
        prompt_tokens=len(reused.prompt_ids),
        outcomes=outcomes,
        deviation=(
            deviation(reused.follow(EVERYTHING).log_probs, full.log_probs)
            if recompute_everything
            else None
        ),
        without_kv=frozenset(reused.without_kv),
    )


def speedups(engine: Checkable, question: StoreQuestion, turn: int) -> list[float]:
    """Full attention's time to first token over each way's, by `WAYS`, one timed after the other.

    turn: the number of the question, which rotates the order.
    """
    ways = (FULL_ATTENTION, *WAYS)
    first = turn % len(ways)
    ms: dict[AnswerSettings, float] = {}
    for way in (*ways[first:], *ways[:first]):
        settings = replace(of_question(way, question), max_tokens=1)
        ms[way] = engine.answer(question.prompt, settings).ttft.total
    return [ms[FULL_ATTENTION] / ms[way] for way in WAYS]


def deviation(log_probs: torch.Tensor, reference: torch.Tensor) -> float:
    """How far logits are from others: root mean square relative to their spread, in the worst row.

    Both: [A, V]; a constant added to a row makes no difference.
    """
    difference = log_probs - reference
    return float((difference.std(-1) / reference.std(-1)).max())


class _Reused:
    """A question's prompt over each kind of stored KV, with full attention's answer."""

    def __init__(self, engine: Checkable, question: StoreQuestion) -> None:
        self._engine = engine
        self._question = question
        self._prompts: dict[AnswerSettings, ReusedPrompt] = {}
        self.without_kv: set[str] = set()  # ids of chunks
        loaded = self._load(PLAIN_REUSE)
        self.prompt_ids = loaded.prompt.token_ids
        self.full: FullAnswer = answer_fully(engine.executor, self.prompt_ids, MAX_TOKENS)

    def follow(self, way: AnswerSettings) -> Followed:
        """Compute full attention's answer over a way's KV."""
        # Ways over the same KV share a prompt: it is placed once.
        placed = replace(way, selector=PLAIN_REUSE.selector, ratio=PLAIN_REUSE.ratio)
        if placed not in self._prompts:
            loaded = self._load(placed)
            self._prompts[placed] = ReusedPrompt(
                self._engine.executor,
                loaded.prompt,
                loaded.kvs,
                self.full,
                MAX_TOKENS,
                corrected=way.corrected,
            )
        selector = make_selector(way.selector, way.ratio, self._engine.calibration)
        return self._prompts[placed].follow(selector)

    def _load(self, way: AnswerSettings) -> LoadedPrompt:
        loaded = self._engine.load(self._question.prompt, of_question(way, self._question))
        if not loaded.prompt.spans:
            raise StoreError(
                f"No KV of the store at {self._engine.store.path} could be used for a question "
                "over its chunks. `fusionrag verify` says what is damaged; ingest again to compute "
                "what is missing."
            )
        self.without_kv.update(
            span.record.chunk.id
            for span in (*loaded.prompt.spans, *loaded.missed)
            if span.record.chunk.id in loaded.reasons
            if span.record.fused_key or span in loaded.missed  # some have no neighbours
        )
        return loaded


def of_question(way: AnswerSettings, question: StoreQuestion) -> AnswerSettings:
    """A way's settings for a question: its chunks, and its scope alone."""
    return replace(way, handles=question.handles, scopes=(question.scope,))
