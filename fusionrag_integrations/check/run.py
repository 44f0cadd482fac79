"""Questions -> measurements -> the report."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from statistics import fmean, median

import torch

from fusionrag_integrations.bootstrap import interval, ratio_interval
from fusionrag_integrations.check.measure import (
    MAX_TOKENS,
    WAYS,
    Checkable,
    Measured,
    Outcome,
    measure,
    speedups,
)
from fusionrag_integrations.check.questions import store_questions
from fusionrag_integrations.check.report import CheckReport, CheckRow, DiskUse, Estimate
from fusionrag_integrations.check.verdict import verdict
from fusionrag_integrations.corpus import KV_DIRECTORY, Corpus, Progress
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.records import RecordFiles
from fusionrag_integrations.types import AnswerSettings

GATED = 3  # questions of which everything is recomputed, too: a model that errs does so in each
TIMED = 10  # questions that are timed at most, spread over all: full attention takes long

# By how much everything recomputed may differ from the model's own prefill (see `deviation`):
# several times what rounding makes of it in models of 8 to 30 layers (2e-6, 2e-3 and 2e-2), and
# less than what stale KV does (0.1 to 0.5 without recomputing, 1e-3 to 1e-2 with 95% recomputed,
# which only float32 can tell).
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# Nats of an answer. Plain reuse that loses less than this is as good as full attention: its answers
# are full attention's nearly all, and shares of so little say nothing.
LEAST_LOSS = 5e-2


def check_store(
    engine: Checkable, questions: int, estimate: Estimate | None, progress: Progress
) -> CheckReport:
    """Ask questions made from the store in every way, and say what that shows.

    Changes nothing. Raises `InvalidInputError` for a store without chunks, and for fewer
    questions than one.
    """
    if not isinstance(questions, int) or questions < 1:
        raise InvalidInputError(f"questions is {questions!r}; give a whole number from 1 on.")
    asked = store_questions(engine.model, engine.corpus, questions, MAX_TOKENS)
    step = ceil(len(asked) / TIMED)
    speedups(engine, asked[0], 0)  # what is loaded or compiled by first requests isn't timed
    measured: list[Measured] = []
    timed: list[list[float]] = []
    for number, question in enumerate(asked):
        progress("check", number, len(asked))
        measured.append(measure(engine, question, number < GATED))
        if number % step == 0:
            timed.append(speedups(engine, question, len(timed)))
    progress("check", len(asked), len(asked))
    outcomes = list(zip(*(one.outcomes for one in measured), strict=True))  # by way
    rows = tuple(
        _row(way, mine, outcomes[0], times)
        for way, mine, times in zip(WAYS, outcomes, zip(*timed, strict=True), strict=True)
    )
    deviation = max(one.deviation for one in measured if one.deviation is not None)
    exact = deviation <= TOLERANCE[engine.model.dtype]
    prompt_tokens = round(median(one.prompt_tokens for one in measured))
    without_kv = len(frozenset[str]().union(*(one.without_kv for one in measured)))
    return CheckReport(
        model=engine.model.name,
        exact=exact,
        deviation=deviation,
        rows=rows,
        verdict=verdict(exact, rows, len(asked), prompt_tokens, without_kv),
        disk=disk_use(engine.corpus),
        estimate=estimate,
        questions=len(asked),
        prompt_tokens=prompt_tokens,
        without_kv=without_kv,
    )


def disk_use(corpus: Corpus) -> DiskUse:
    """What the KV of a store's documents takes; what was kept of requests isn't counted."""
    catalog = corpus.catalog
    files = RecordFiles(corpus.path / KV_DIRECTORY, catalog.info.record_signature)
    own = {key for _, *keys in catalog.kv_keys() for key in keys}
    taken = sum(nbytes for key, nbytes, _ in files.listed() if key in own)
    counts = catalog.counts()
    return DiskUse(
        bytes=taken,
        chunks=counts.chunks,
        tokens=counts.tokens,
        bytes_per_chunk=round(taken / counts.chunks),
        bytes_per_token=round(taken / counts.tokens),
    )


def _row(
    way: AnswerSettings,
    mine: Sequence[Outcome],
    plain: Sequence[Outcome],
    speedups: Sequence[float],
) -> CheckRow:
    equal = [float(outcome.equal) for outcome in mine]
    tokens = sum(outcome.tokens for outcome in mine)
    losses = [outcome.divergence for outcome in mine], [outcome.divergence for outcome in plain]
    left, loss = map(sum, losses)
    worth = loss > LEAST_LOSS * len(plain)
    bounds = ratio_interval(*losses) if worth else None
    return CheckRow(
        kv=way.kv,
        ratio=way.ratio,
        equal=fmean(equal),
        equal_interval=interval(equal),
        recovered=1.0 - left / loss if worth else None,
        recovered_interval=(1.0 - bounds[1], 1.0 - bounds[0]) if bounds else None,
        agreement=sum(outcome.agreed for outcome in mine) / tokens,
        speedup=median(speedups),
    )
