"""What is asked, and what it gives alone."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

from fusionrag_integrations import AnswerSettings, Document, FusionEngine
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.kv.local import LocalKVFiles
from tests.small_demo import few_documents, few_questions

FRESH = Budgets(host=0, starts=0)  # what is damaged is seen at once
QUESTIONS = few_questions(2)[:6]
ROWS = few_documents(QUESTIONS, 24)
AD_HOC = [row["text"] for row in ROWS[-18:-6]]  # texts that come with questions
OTHERS = [Document(row["id"], row["text"], row["title"], scope="other") for row in ROWS[-6:]]
DOCUMENTS = [Document(row["id"], row["text"], row["title"]) for row in ROWS[:-18]]
OF_OTHERS = AnswerSettings(max_tokens=4, corrected=False, scopes=("other",))


@dataclass(frozen=True)
class Case:
    prompt: str
    settings: AnswerSettings

    def body(self) -> dict[str, Any]:
        """Of a request for a completion."""
        default = AnswerSettings()
        given = {name: getattr(self.settings, name) for name in (f.name for f in fields(default))}
        changed = {name: v for name, v in given.items() if v != getattr(default, name)}
        return {"prompt": self.prompt, **changed}


def cases() -> list[Case]:
    """Prompts of two or three documents, answered in several ways; and of texts that are none's."""
    ways = [
        {},
        {"ratio": 0.0},
        {"kv": "none"},
        {"selector": "cacheblend", "corrected": False},
        {"stop": ("e",), "temperature": 0.8, "seed": 3},
    ]
    chance = random.Random(0)
    texts = [document.text for document in DOCUMENTS]
    of_documents = [
        Case(
            "\n\n".join([*chance.sample(texts, 2 + number % 2), question["question"]]),
            AnswerSettings(max_tokens=4 + number % 9).changed(way),
        )
        for number, question in enumerate(QUESTIONS)
        for way in ways
    ]
    isolated = AnswerSettings(max_tokens=5, kv="isolated")
    return of_documents + [
        Case(f"{text}\n\n{QUESTIONS[number % 6]['question']}", isolated)
        for number, text in enumerate(AD_HOC)
    ]


CASES = cases()


def of_other(document: Document) -> str:
    """A prompt over one that comes and goes."""
    return f"{document.text}\n\n{QUESTIONS[0]['question']}"


def records(store: Path) -> list[Path]:
    return sorted(LocalKVFiles(store / "kv").paths())


@contextmanager
def damaged(record: Path) -> Iterator[None]:
    """One of its tensors' bytes is another, for a while. Needs no room on the disk."""
    at = record.stat().st_size - 100
    with record.open("r+b", buffering=0) as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
        try:
            yield
        finally:
            file.seek(at)
            file.write(bytes([byte]))


def used(engine: FusionEngine, case: Case) -> set[str]:
    """The keys of the stored KV that it may use."""
    of_chunks = [span.record for span in engine.load(case.prompt, case.settings).prompt.spans]
    stored = [record for record in of_chunks if not record.captured]
    return {key for record in stored for key in (record.isolated_key, record.fused_key) if key}


class Expected:
    """What each case gives alone, also where one record is damaged."""

    def __init__(self, model: CausalModel, store: Path, elsewhere: Path) -> None:
        self._model = model
        self._store = shutil.copytree(store, elsewhere)
        self._without: dict[tuple[Case, str], str] = {}
        self.of_others: dict[str, str] = {}
        with self._engine() as engine:
            self._whole = {case: engine.answer(case.prompt, case.settings).text for case in CASES}
            self._of = {case: used(engine, case) for case in CASES}
            for record in records(self._store):
                with damaged(record):
                    for case in CASES:
                        if record.stem in self._of[case]:
                            text = engine.answer(case.prompt, case.settings).text
                            self._without[case, record.stem] = text
            for document in OTHERS:
                engine.ingest([document])
                answer = engine.answer(of_other(document), OF_OTHERS)
                self.of_others[document.id] = answer.text
                engine.delete([document.id], scope=document.scope)

    def _engine(self) -> FusionEngine:
        engine = FusionEngine.open(self._model, self._store, budgets=FRESH)
        engine.register_texts(AD_HOC)
        return engine

    def possible(self, case: Case, damages: set[str], *, fell_back: bool | None) -> set[str]:
        """Texts that are right. damages: keys of the records that were damaged meanwhile.

        fell_back: whether the answer was made without one; None if nobody knows.
        """
        if fell_back is False:
            return {self._whole[case]}
        without = {self._without[case, key] for key in damages & self._of[case]}
        return without if fell_back else without | {self._whole[case]}

    def with_two(self, case: Case, damages: set[str]) -> set[str]:
        """What it gives without two of these records: the second was damaged after the first."""
        both = damages & self._of[case]
        files = [record for record in records(self._store) if record.stem in both]
        found: set[str] = set()
        with self._engine() as engine:
            for first, second in combinations(files, 2):
                with damaged(first), damaged(second):
                    found.add(engine.answer(case.prompt, case.settings).text)
        return found
