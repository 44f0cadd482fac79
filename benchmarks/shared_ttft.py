"""How much later the first token comes where KV is in object storage, and what a prefetch hides.

Each question is asked of machines of its own, which have nothing in memory:

directory   KV is in a directory on this disk
first       KV is in the storage
prefetched  the same, and reading began when the chunks were found, a gap before the prompt came
second      KV is in the copies that `first` has left on this disk
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.bench.clock import quartiles
from fusionrag_integrations.bench.machine import described, where_and_when
from fusionrag_integrations.demo.real_text import (
    CHUNK_TOKENS,
    CHUNKS,
    PARAGRAPHS_PATH,
    QUESTIONS_PATH,
)
from fusionrag_integrations.documents.readers import read_documents
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.store.kv.types import KVFormat
from fusionrag_integrations.support.progress import Progress


@dataclass(frozen=True, slots=True)
class Times:
    """Of one way. ttft_ms: the median over questions, with quartiles in spread_ms."""

    ttft_ms: float
    spread_ms: tuple[float, float]

    @classmethod
    def of(cls, ttft: Sequence[float]) -> Times:
        return cls(median(ttft), quartiles(ttft))


@dataclass(frozen=True, slots=True)
class Prefetched:
    """With a gap. hidden: the share of what `first` takes longer than `directory` that this
    doesn't, as a median over questions and quartiles.
    """

    gap_ms: float
    times: Times
    hidden: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Turn:
    """TTFT of one question in milliseconds."""

    directory: float
    first: float
    prefetched: tuple[float, ...]
    second: float

    def hidden(self, number: int) -> float:
        """The share that the prefetch with this gap hides."""
        return (self.first - self.prefetched[number]) / (self.first - self.directory)


@dataclass(frozen=True, slots=True)
class SharedTTFT:
    """later: how many times as long `second` takes as `directory`, as a median over questions and
    quartiles. read_bytes: by a question from the storage.
    """

    questions: int
    directory: Times
    first: Times
    prefetched: tuple[Prefetched, ...]
    second: Times
    later: tuple[float, float, float]
    read_bytes: int


def measure_shared_ttft(
    model: CausalModel,
    url: str,
    directory: Path,
    questions: int,
    ratio: float,
    gaps_ms: Sequence[float],
    kv_format: KVFormat | None,
    progress: Progress,
) -> dict[str, Any]:
    """Index the demo's real text at a URL and in a directory, and ask its questions of both."""
    documents = list(read_documents([PARAGRAPHS_PATH]))
    for place in (url, directory):
        with FusionEngine.open(
            model, place, chunk_tokens=CHUNK_TOKENS, kv_format=kv_format
        ) as engine:
            engine.ingest(documents, progress=progress)
            stored = engine.store.catalog.info.kv_format
    rows = QUESTIONS_PATH.read_text(encoding="utf-8").splitlines()[:questions]
    asking = _Asking(model, AnswerSettings(max_tokens=1, ratio=ratio))
    turns: list[Turn] = []
    for number, row in enumerate((rows[0], *rows)):  # the first one warms up
        progress("ask", number, len(rows))
        question = json.loads(row)["question"]
        on_disk = asking.ask(directory, question)
        prefetched = tuple(asking.ask(url, question, afresh=True, gap_ms=gap) for gap in gaps_ms)
        turns.append(
            Turn(
                on_disk,
                asking.ask(url, question, afresh=True),
                prefetched,
                asking.ask(url, question),
            )
        )
    progress("ask", len(rows), len(rows))
    summary = summed_up(turns[1:], gaps_ms, asking.read_bytes // len(turns))
    what = described(model) | {"ratio": ratio, "kv_format": stored}
    return where_and_when() | what | asdict(summary)


def summed_up(turns: Sequence[Turn], gaps_ms: Sequence[float], read_bytes: int) -> SharedTTFT:
    """Medians and quartiles. gaps_ms: of each turn's prefetches. read_bytes: by a question."""
    later = [turn for turn in turns if turn.first > turn.directory]
    return SharedTTFT(
        questions=len(turns),
        directory=Times.of([turn.directory for turn in turns]),
        first=Times.of([turn.first for turn in turns]),
        prefetched=tuple(
            Prefetched(
                gap,
                Times.of([turn.prefetched[number] for turn in turns]),
                _spread([turn.hidden(number) for turn in later]),
            )
            for number, gap in enumerate(gaps_ms)
        ),
        second=Times.of([turn.second for turn in turns]),
        later=_spread([turn.second / turn.directory for turn in turns]),
        read_bytes=read_bytes,
    )


class _Asking:
    """Asks machines that have nothing in memory. read_bytes: without a prefetch, from storage."""

    def __init__(self, model: CausalModel, settings: AnswerSettings) -> None:
        self._model = model
        self._settings = settings
        self.read_bytes = 0

    def ask(
        self, place: str | Path, question: str, *, afresh: bool = False, gap_ms: float | None = None
    ) -> float:
        """The TTFT in milliseconds. afresh: without copies on the disk. gap_ms: of a prefetch."""
        with FusionEngine.open(self._model, place) as engine:
            hits = engine.store.search(question, CHUNKS)
            prompt = question_prompt([hit.chunk.text for hit in hits], question)
            if afresh:
                for key in list(engine.kv.keys()):
                    engine.kv.delete(key)
            if gap_ms is not None:
                engine.prefetch(hit.handle for hit in hits if hit.handle)
                sleep(gap_ms / 1e3)
            answer = engine.answer(prompt, self._settings)
            if answer.fallbacks:
                raise RuntimeError(f"{question!r} was answered without KV: {answer.fallbacks}")
            if afresh and gap_ms is None:
                self.read_bytes += engine.metrics().shared.moved_bytes
            return answer.ttft.total


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    low, high = quartiles(values)
    return median(values), low, high
