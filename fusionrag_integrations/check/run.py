"""Questions -> measurements -> the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from statistics import fmean, median

from fusionrag_integrations.check.bootstrap import interval, ratio_interval
from fusionrag_integrations.check.estimate import estimate_ingest
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
from fusionrag_integrations.check.report import CheckReport, CheckRow, DiskUse, ModelFacts
from fusionrag_integrations.check.verdict import verdict
from fusionrag_integrations.documents.types import Document
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.support.progress import Progress

GATED = 3  # questions with which everything is recomputed: a wrong model shows in each
TIMED = 10  # questions that are timed at most, spread over all: full attention takes long

# Nats of an answer. If plain reuse loses less than this, nearly all its answers are full
# attention's, and a share of so small a loss means nothing.
LEAST_LOSS = 5e-2


def check_store(
    engine: Checkable, questions: int, estimate: Iterable[Document] | None, progress: Progress
) -> CheckReport:
    """Ask questions made from the store in every way, and report the results.

    estimate: documents whose ingest is to be estimated.

    Changes nothing. Raises `InvalidInputError` for a store without chunks, and for fewer
    questions than one.
    """
    if not isinstance(questions, int) or questions < 1:
        raise InvalidInputError(f"questions is {questions!r}; give a whole number from 1 on.")
    estimated = None
    if estimate is not None:
        info = engine.store.catalog.info
        estimated = estimate_ingest(
            engine.executor.model, estimate, info.chunk_tokens, info.kv_format, progress
        )
    asked = store_questions(engine.executor.model, engine.store, questions, MAX_TOKENS)
    step = ceil(len(asked) / TIMED)
    speedups(engine, asked[0], 0)  # warm-up: loads and compiles, which isn't timed
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
    # With stale KV it is 0.1 to 0.5 without recomputing, and 1e-3 to 1e-2 with 95% recomputed,
    # where only float32 can tell it from rounding.
    exact = deviation <= engine.executor.model.rounding
    prompt_tokens = round(median(one.prompt_tokens for one in measured))
    without_kv = len(frozenset[str]().union(*(one.without_kv for one in measured)))
    return CheckReport(
        model=engine.executor.model.name,
        facts=ModelFacts.of(engine.executor.model),
        exact=exact,
        deviation=deviation,
        rows=rows,
        verdict=verdict(exact, rows, len(asked), prompt_tokens, without_kv),
        disk=disk_use(engine.store),
        estimate=estimated,
        questions=len(asked),
        prompt_tokens=prompt_tokens,
        without_kv=without_kv,
    )


def disk_use(store: Store) -> DiskUse:
    """The size of the KV of a store's documents, without ad-hoc chunks."""
    catalog = store.catalog
    keys = {key for _, *keys in catalog.kv.keys_by_chunk() for key in keys}
    taken = sum(entry.nbytes for entry in store.records.files.entries() if entry.key in keys)
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
        kv=way.kv or "fused",
        ratio=way.ratio,
        equal=fmean(equal),
        equal_interval=interval(equal),
        recovered=1.0 - left / loss if worth else None,
        recovered_interval=(1.0 - bounds[1], 1.0 - bounds[0]) if bounds else None,
        agreement=sum(outcome.agreed for outcome in mine) / tokens,
        speedup=median(speedups),
    )
