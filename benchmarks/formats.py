"""What a store's format costs: bytes, time, how far KV is off, and right answers.

Each format has a store of its own, made by a whole ingest: neighbours' KV is read back from the
store while chunks are fused, so in a compact store fused KV is made behind compact neighbours, and
is then kept compact itself. What must not differ doesn't: documents, model, prompts, and which
chunks each one is fused behind (an index may break ties in another order) are those of the store
in float32. At ratio 1 nothing of a chunk's KV is used, so that is asked in float32 alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from benchmarks.format_records import REFERENCE, Records, measure_records
from benchmarks.results.differences import paired_difference
from fusionrag_integrations.bench.comparison import Question
from fusionrag_integrations.bench.machine import described, where_and_when
from fusionrag_integrations.bench.metrics import exact_match, f1
from fusionrag_integrations.bench.strategies import Strategy
from fusionrag_integrations.bench.suites import Suite
from fusionrag_integrations.bench.summary import ALL_KINDS
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.ingest.neighbours import DEFAULT_NEIGHBOURS, Candidates
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.kv.types import KVFormat
from fusionrag_integrations.support.progress import Progress


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A format at one ratio on one kind of question, or on all: means over n questions.

    difference: of f1 from float32's on the same questions; ci: its 95% interval.
    """

    kv_format: KVFormat
    kind: str
    ratio: float
    n: int
    em: float
    f1: float
    difference: float
    ci: tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Score:
    kind: str
    em: float
    f1: float


_Runs = dict[tuple[KVFormat, float], list[_Score]]
"""Every question's score by format and ratio, in the order of questions."""


def check_formats(formats: Sequence[str]) -> list[KVFormat]:
    """The formats of these names, each once, float32 first, with which the others are compared.

    Raises `InvalidInputError` for a name that isn't known.
    """
    known: dict[str, KVFormat] = {name: name for name in get_args(KVFormat)}
    if unknown := [name for name in formats if name not in known]:
        raise InvalidInputError(
            f"Unknown formats {', '.join(unknown)}; known are {', '.join(known)}."
        )
    return list(dict.fromkeys([REFERENCE, *(known[name] for name in formats)]))


def measure_formats(
    model: CausalModel,
    suite: Suite,
    formats: Sequence[str],
    ratios: Sequence[float],
    directory: Path,
    embedding: object | None,
    progress: Progress,
) -> dict[str, Any]:
    """All formats on the same questions, as plain values.

    ratios: shares of chunk tokens to recompute. directory: for the stores; it is empty.
    """
    engines: dict[KVFormat, FusionEngine] = {}
    for kv_format in check_formats(formats):
        engine = FusionEngine.open(
            model,
            directory / kv_format,
            embedding=embedding,
            chunk_tokens=suite.chunk_tokens,
            kv_format=kv_format,
        )
        first, own = (e.store.catalog for e in (engines.get(REFERENCE, engine), engine))
        policy = DEFAULT_NEIGHBOURS if own is first else _NeighboursOf(first, own)
        engine.ingest(suite.documents, neighbours=policy, progress=progress)
        engines[kv_format] = engine
    stores = {kv_format: Records(engine.store) for kv_format, engine in engines.items()}
    rows = measure_records(model, stores, progress)
    questions = suite.questions(engines[REFERENCE])
    scores = _ask(engines, questions, ratios, suite.max_tokens, progress)
    for engine in engines.values():
        engine.close()
    return {
        **where_and_when(),
        **described(model),
        "dataset": suite.name,
        "content": suite.content,
        "chunks": len(stores[REFERENCE].served),
        "formats": [asdict(row) for row in rows],
        "rows": [asdict(row) for row in _summary(scores)],
    }


class _NeighboursOf:
    """The neighbours that chunks have in another store of the same documents."""

    similar = 0
    predecessors = 0

    def __init__(self, other: Catalog, own: Catalog) -> None:
        self._other, self._own = other, own

    def choose(self, candidates: Candidates) -> list[ChunkRecord]:
        ids = self._other.kv.neighbours(candidates.record.chunk.id)
        records = self._own.chunks.records(ids)
        return [records[chunk_id] for chunk_id in ids]


def _ask(
    engines: Mapping[KVFormat, FusionEngine],
    questions: Sequence[Question],
    ratios: Sequence[float],
    max_tokens: int,
    progress: Progress,
) -> _Runs:
    scores: _Runs = {(name, ratio): [] for ratio in ratios for name in engines}
    for number, question in enumerate(questions):
        progress("ask", number, len(questions))
        for ratio in ratios:
            settings = Strategy("fusionrag", "fused", ratio).settings(max_tokens)
            for name, engine in engines.items():
                if ratio == 1.0 and name != REFERENCE:
                    score = scores[REFERENCE, ratio][-1]
                else:
                    text, accepted = engine.answer(question.prompt, settings).text, question.answers
                    score = _Score(question.kind, exact_match(text, accepted), f1(text, accepted))
                scores[name, ratio].append(score)
    progress("ask", len(questions), len(questions))
    return scores


def _summary(scores: _Runs) -> list[ScoreRow]:
    """Rows kind by kind, and at last over all kinds."""
    kinds = list(dict.fromkeys(score.kind for run in scores.values() for score in run))
    return [
        _row(name, kind, ratio, _of_kind(run, kind), _of_kind(scores[REFERENCE, ratio], kind))
        for kind in (kinds if len(kinds) == 1 else [*kinds, ALL_KINDS])
        for (name, ratio), run in scores.items()
    ]


def _of_kind(run: Sequence[_Score], kind: str) -> list[_Score]:
    return [score for score in run if kind in (score.kind, ALL_KINDS)]


def _row(
    name: KVFormat, kind: str, ratio: float, run: Sequence[_Score], reference: Sequence[_Score]
) -> ScoreRow:
    gap = paired_difference([s.f1 for s in run], [s.f1 for s in reference])
    return ScoreRow(
        kv_format=name,
        kind=kind,
        ratio=ratio,
        n=len(run),
        em=mean(score.em for score in run),
        f1=mean(score.f1 for score in run),
        difference=gap.mean,
        ci=(gap.low, gap.high),
    )
