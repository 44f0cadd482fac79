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
from typing import Any, Literal, get_args

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
from fusionrag_integrations.support.progress import Progress

Way = Literal["directory", "first", "prefetched", "second"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True, slots=True)
class SharedTTFT:
    """Medians over questions. ttft_ms: by way, with quartiles in spread_ms.

    second: how much longer `second` takes than `directory`, as a ratio, with quartiles. hidden: the
    share of what `first` takes longer than `directory` that `prefetched` doesn't. read_bytes: by a
    question from the storage.
    """

    questions: int
    ttft_ms: dict[str, float]
    spread_ms: dict[str, tuple[float, float]]
    second: tuple[float, float, float]
    hidden: tuple[float, float, float]
    read_bytes: int


def measure_shared_ttft(
    model: CausalModel,
    url: str,
    directory: Path,
    questions: int,
    ratio: float,
    gap_ms: float,
    progress: Progress,
) -> dict[str, Any]:
    """Index the demo's real text at a URL and in a directory, and ask its questions of both."""
    documents = list(read_documents([PARAGRAPHS_PATH]))
    for place in (url, directory):
        with FusionEngine.open(model, place, chunk_tokens=CHUNK_TOKENS) as engine:
            engine.ingest(documents, progress=progress)
    rows = QUESTIONS_PATH.read_text(encoding="utf-8").splitlines()[:questions]
    settings = AnswerSettings(max_tokens=1, ratio=ratio)
    asking = _Asking(model, url, directory, settings, gap_ms)
    found: dict[Way, list[float]] = {way: [] for way in WAYS}
    for number, row in enumerate((rows[0], *rows)):  # the first one warms up
        progress("ask", number, len(rows))
        for way in WAYS:
            ttft = asking.ask(way, json.loads(row)["question"])
            if number:
                found[way].append(ttft)
    summary = _summed_up(found, asking.read_bytes // (len(rows) + 1))
    what = described(model) | {"ratio": ratio, "gap_ms": gap_ms}
    return where_and_when() | what | asdict(summary)


class _Asking:
    """Asks machines that have nothing in memory. read_bytes: by `first` ones, from the storage."""

    def __init__(
        self, model: CausalModel, url: str, directory: Path, settings: AnswerSettings, gap_ms: float
    ) -> None:
        self._model = model
        self._places = {way: directory if way == "directory" else url for way in WAYS}
        self._settings = settings
        self._gap = gap_ms / 1e3
        self.read_bytes = 0

    def ask(self, way: Way, question: str) -> float:
        """The TTFT in milliseconds."""
        with FusionEngine.open(self._model, self._places[way]) as engine:
            hits = engine.store.search(question, CHUNKS)
            prompt = question_prompt([hit.chunk.text for hit in hits], question)
            if way in ("first", "prefetched"):
                for key in list(engine.kv.keys()):
                    engine.kv.delete(key)  # the copies
            if way == "prefetched":
                engine.prefetch(hit.handle for hit in hits if hit.handle)
            sleep(self._gap)
            answer = engine.answer(prompt, self._settings)
            if answer.fallbacks:
                raise RuntimeError(f"{question!r} was answered without KV: {answer.fallbacks}")
            if way == "first":
                self.read_bytes += engine.metrics().shared.moved_bytes
            return answer.ttft.total


def _summed_up(found: dict[Way, list[float]], read_bytes: int) -> SharedTTFT:
    turns = [dict(zip(WAYS, turn, strict=True)) for turn in zip(*found.values(), strict=True)]
    later = [turn for turn in turns if turn["first"] > turn["directory"]]
    return SharedTTFT(
        questions=len(turns),
        ttft_ms={way: median(times) for way, times in found.items()},
        spread_ms={way: quartiles(times) for way, times in found.items()},
        second=_spread([turn["second"] / turn["directory"] for turn in turns]),
        hidden=_spread(
            [
                (turn["first"] - turn["prefetched"]) / (turn["first"] - turn["directory"])
                for turn in later
            ]
        ),
        read_bytes=read_bytes,
    )


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    low, high = quartiles(values)
    return median(values), low, high
