"""Ten thousand requests that share passes, some cancelled, over records that get damaged."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusionrag_integrations import AnswerSettings, Document, FusionEngine
from fusionrag_integrations.demo import CHUNK_TOKENS, MODEL_DIR
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.kv.local import LocalKVFiles
from tests.long.test_load import Report
from tests.processes import Held
from tests.small_demo import few_documents, few_questions
from tests.steps import kv_in_use, until_kv_is_free

REQUESTS = 10_000
THREADS = 24
BUDGETS = Budgets(
    host=8 << 20, starts=16 << 20
)  # some of the records: others are read from the disk each time
FRESH = Budgets(host=0, starts=0)  # what is damaged is seen at once


@dataclass(frozen=True)
class Case:
    prompt: str
    settings: AnswerSettings


def cases() -> list[Case]:
    """Prompts of two or three documents, answered in several ways."""
    questions = few_questions(2)[:6]
    texts = [row["text"] for row in few_documents(questions, 6)]
    ways = [
        {},
        {"ratio": 0.0},
        {"kv": "none"},
        {"selector": "cacheblend", "corrected": False},
        {"stop": ("e",), "temperature": 0.8, "seed": 3},
    ]
    chance = random.Random(0)
    return [
        Case(
            "\n\n".join([*chance.sample(texts, 2 + number % 2), question["question"]]),
            AnswerSettings(max_tokens=4 + number % 9).changed(way),
        )
        for number, question in enumerate(questions)
        for way in ways
    ]


CASES = cases()


@pytest.fixture(scope="module")
def model() -> CausalModel:
    return CausalModel.load(MODEL_DIR)


@pytest.fixture
def store(model: CausalModel, tmp_path: Path) -> Path:
    rows = few_documents(few_questions(2)[:6], 6)
    with FusionEngine.open(model, tmp_path / "store", chunk_tokens=CHUNK_TOKENS) as engine:
        engine.ingest([Document(id=r["id"], text=r["text"], title=r["title"]) for r in rows])
    return tmp_path / "store"


def records(store: Path) -> list[Path]:
    return sorted(LocalKVFiles(store / "kv").paths())


@contextmanager
def damaged(record: Path) -> Iterator[None]:
    """One of its tensors' bytes is another, for a while."""
    content = record.read_bytes()
    wrong = bytearray(content)
    wrong[-100] ^= 1
    record.write_bytes(wrong)
    try:
        yield
    finally:
        record.write_bytes(content)


class Expected:
    """What each case gives alone, also where one record is damaged."""

    def __init__(self, model: CausalModel, store: Path, elsewhere: Path) -> None:
        shutil.copytree(store, elsewhere)
        self._without: dict[tuple[Case, str], str] = {}
        with FusionEngine.open(model, elsewhere, budgets=FRESH) as engine:
            self._whole = {case: engine.answer(case.prompt, case.settings).text for case in CASES}
            for record in records(elsewhere):
                with damaged(record):
                    for case in CASES:
                        answer = engine.answer(case.prompt, case.settings)
                        self._without[case, record.name] = answer.text

    def accepts(self, case: Case, text: str, records: set[str], *, fell_back: bool) -> bool:
        """records: those that were damaged meanwhile."""
        if not fell_back:
            return text == self._whole[case]
        return text in {self._without[case, name] for name in records}


class Soak:
    """Requests by many threads, and somebody who damages records meanwhile."""

    def __init__(self, engine: FusionEngine, expected: Expected) -> None:
        self.engine = engine
        self.expected = expected
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._counting = threading.Lock()
        self._damaged: dict[int, str] = {}  # the record that is, by number of damage
        self._end = threading.Event()

    def ask(self, number: int) -> None:
        chance = random.Random(number)
        case = chance.choice(CASES)
        kind = chance.choices(["read", "closed", "cancelled"], [8, 1, 1])[0]
        first = max(self._damaged, default=0)
        if kind == "read":
            answer = self.engine.answer(case.prompt, case.settings)
            seen = {name for number, name in self._damaged.copy().items() if number >= first - 1}
            fell_back = bool(answer.fallbacks)
            if not self.expected.accepts(case, answer.text, seen, fell_back=fell_back):
                self.wrong.append(f"{case.settings}: {answer.text!r}, {answer.fallbacks}")
            kind = "fell back" if fell_back else "read"
        elif kind == "closed":
            stream = self.engine.stream(case.prompt, case.settings)
            for _ in range(chance.randrange(4)):
                next(stream, None)
            if chance.random() < 0.7:
                stream.close()
        else:
            asyncio.run(self._cancel(case, chance.uniform(0, 0.2)))
        with self._counting:
            self.counts[kind] += 1

    async def _cancel(self, case: Case, after: float) -> None:
        task = asyncio.create_task(self.engine.stream(case.prompt, case.settings).aread())
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def damage(self) -> None:
        chance, files = random.Random(1), records(self.engine.store.path)
        number = 0
        while not self._end.wait(chance.uniform(0, 0.3)):
            number += 1
            record = chance.choice(files)
            self._damaged[number] = record.name
            with damaged(record):
                self._end.wait(chance.uniform(0, 0.3))
        self.counts["records damaged"] = number

    def run(self, requests: range) -> None:
        damaging = threading.Thread(target=self.damage)
        damaging.start()
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(self.ask, requests))
        self._end.set()
        damaging.join()


def test_soak(
    model: CausalModel, store: Path, tmp_path: Path, report: Callable[..., None] | Report
) -> None:
    expected = Expected(model, store, tmp_path / "elsewhere")
    with FusionEngine.open(model, store, budgets=BUDGETS) as engine:
        soak = Soak(engine, expected)
        warm = range(-400, 0)
        soak.run(warm)  # all threads and caches that there will be
        asyncio.run(until_kv_is_free(engine))
        before = Held.now()
        soak.run(range(REQUESTS))
        asyncio.run(until_kv_is_free(engine))
        after, held = Held.now(), kv_in_use(engine)
    counts = soak.counts
    report(
        "Soak",
        f"Requests of the bundled model by {THREADS} threads that share passes, full attention "
        "and sampling among them, streams closed or dropped, tasks cancelled, while records are "
        "damaged and restored",
        ", ".join(f"{number:,} {what}" for what, number in counts.items()),
        f"{len(soak.wrong)} wrong answers; {held} records of KV held, "
        f"{max(0, after.threads - before.threads)} threads, "
        f"{max(0, after.descriptors - before.descriptors)} descriptors and "
        f"{max(0, after.memory - before.memory)} MB more",
    )
    assert not soak.wrong, soak.wrong[:5]
    assert counts["fell back"] > 0
    assert held == 0
    assert after.threads <= before.threads
    assert after.descriptors <= before.descriptors
    assert after.memory <= before.memory + 64
