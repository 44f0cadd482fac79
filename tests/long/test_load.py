"""Many requests at once, and many that are cancelled: what is wrong, and what is left."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations import langchain as lc
from fusionrag_integrations import llama_index as li
from fusionrag_integrations.store.kv.disk_budget import Budgets
from tests.conftest import town
from tests.long.ways import ASYNC_WAYS, WAYS
from tests.processes import Held
from tests.steps import kv_in_use, until_kv_is_free

Report = Callable[[str, str, object, object], None]

TOWNS = 6
PROMPTS = [
    f"{town(first).text}\n\n{town(second).text}\n\nWhere is house {first}?"
    for first in range(TOWNS)
    for second in range(TOWNS)
    if first != second
]
KINDS = ("fused", "isolated", "none")
SETTINGS = [{"kv": kind, "max_tokens": 6} for kind in KINDS]
CASES = [(prompt, settings) for prompt in PROMPTS for settings in SETTINGS]
SMALL = Budgets(host=300_000, device=200_000)  # a few records of about 40 KB each
IN_THREADS, IN_LOOP, SEARCHES = 400, 300, 100
THREADS = 8
CANCELLED = 300


@pytest.fixture
def engine(model_dir: Path, tmp_path: Path) -> Iterator[FusionEngine]:
    with FusionEngine.from_pretrained(
        model_dir, store=tmp_path / "store", chunk_tokens=48, budgets=SMALL
    ) as engine:
        engine.ingest([town(number) for number in range(TOWNS)])
        yield engine


def alone(engine: FusionEngine) -> dict[tuple[str, str], str]:
    """What each request gives by itself, by prompt and kind of KV."""
    return {
        (prompt, str(settings["kv"])): engine.answer(prompt, AnswerSettings(**settings)).text
        for prompt, settings in CASES
    }


class Outcomes:
    """What requests gave, held against what they give alone."""

    def __init__(self, engine: FusionEngine) -> None:
        self.engine = engine
        self.expected = alone(engine)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.errors: list[str] = []

    def note(self, way: str, number: int, text: str) -> None:
        prompt, settings = CASES[number % len(CASES)]
        self.counts["requests"] += 1
        expected = self.expected[prompt, str(settings["kv"])]
        if text != expected:
            self.wrong.append(f"{way}, {settings['kv']}: {text!r} in the place of {expected!r}")

    def fail(self, way: str, error: BaseException) -> None:
        self.errors.append(f"{way}: {type(error).__name__}: {error}")

    def ask(self, number: int) -> None:
        way = list(WAYS)[number % len(WAYS)]
        prompt, settings = CASES[number % len(CASES)]
        try:
            self.note(way, number, WAYS[way](self.engine, prompt, settings))
        except Exception as error:  # noqa: BLE001 -- all are counted
            self.fail(way, error)

    async def await_one(self, number: int, at_once: asyncio.Semaphore) -> None:
        way = list(ASYNC_WAYS)[number % len(ASYNC_WAYS)]
        prompt, settings = CASES[number % len(CASES)]
        try:
            async with at_once:
                text = await ASYNC_WAYS[way](self.engine, prompt, settings)
            self.note(way, number, text)
        except Exception as error:  # noqa: BLE001 -- all are counted
            self.fail(way, error)

    def search(self, number: int) -> None:
        """A chunk of the towns that stay is found by its own text, whatever else changes."""
        text = town(number % TOWNS).text.split("\n\n")[number % 3]
        try:
            if number % 2:
                found = lc.FusionKVRetriever(engine=self.engine, scopes=[""]).invoke(text)
                texts = [document.page_content for document in found]
            else:
                nodes = li.FusionKVRetriever(engine=self.engine, scopes=[""]).retrieve(text)
                texts = [node.node.get_content() for node in nodes]
            self.counts["searches"] += 1
            if text not in texts:
                self.wrong.append(f"search: {texts} without {text!r}")
        except Exception as error:  # noqa: BLE001 -- all are counted
            self.fail("search", error)

    def change(self, end: threading.Event) -> None:
        """Ingest and delete documents of another scope until the end."""
        for number in count(100):
            if end.is_set():
                return
            try:
                self.engine.ingest([replace(town(number), scope="other")])
                self.counts["changes"] += 1
                if number % 3:
                    self.engine.delete([f"town-{number}"], scope="other")
                    self.counts["changes"] += 1
            except Exception as error:  # noqa: BLE001 -- all are counted
                self.fail("change", error)


def test_load(engine: FusionEngine, report: Report) -> None:
    outcomes, end = Outcomes(engine), threading.Event()
    numbers = list(range(max(IN_THREADS, IN_LOOP)))
    random.Random(0).shuffle(numbers)

    async def in_loop() -> None:
        at_once = asyncio.Semaphore(40)
        asked = [n for n in numbers if n < IN_LOOP]
        await asyncio.gather(*(outcomes.await_one(number, at_once) for number in asked))

    changing = threading.Thread(target=outcomes.change, args=[end])
    looping = threading.Thread(target=asyncio.run, args=[in_loop()])
    changing.start()
    looping.start()
    with ThreadPoolExecutor(THREADS) as threads:
        searches = threads.map(outcomes.search, range(SEARCHES))
        answers = threads.map(outcomes.ask, [n for n in numbers if n < IN_THREADS])
        list(searches)
        list(answers)
    looping.join()
    end.set()
    changing.join()
    asyncio.run(until_kv_is_free(engine))
    counts, metrics = outcomes.counts, engine.metrics()
    evictions = metrics.host.evictions + metrics.device.evictions
    report(
        "Load",
        f"Answers in {THREADS} threads and 40 tasks at once, by engine, LangChain and LlamaIndex, "
        "streamed and not, over fused, isolated and no KV, with searches, while documents come and "
        "go and memory is short",
        f"{counts['requests']} answers, {counts['searches']} searches, {counts['changes']} ingests "
        f"and deletes, {evictions:,} evictions",
        f"{len(outcomes.wrong)} wrong, {len(outcomes.errors)} errors",
    )
    assert not outcomes.errors, outcomes.errors[:5]
    assert not outcomes.wrong, outcomes.wrong[:5]
    assert (counts["requests"], counts["searches"]) == (IN_THREADS + IN_LOOP, SEARCHES)
    assert counts["changes"] > 2
    assert evictions > 100


class Cancelling:
    """Requests that end early, in all ways that there are."""

    def __init__(self, engine: FusionEngine) -> None:
        self.engine = engine
        self.chance = random.Random(0)
        self.counts: Counter[str] = Counter()

    def case(self) -> tuple[str, dict[str, Any]]:
        prompt, settings = self.chance.choice(CASES)
        return prompt, settings | {"max_tokens": 40}

    def closed_after_some(self) -> None:
        prompt, settings = self.case()
        model: Any = self.chance.choice([lc.FusionRAGLLM, lc.ChatFusionRAG, None])
        if model is None:
            stream: Any = self.engine.stream(prompt, AnswerSettings(**settings))
        else:
            stream = model(engine=self.engine, **settings).stream(prompt)
        for _ in range(self.chance.randrange(8)):
            next(stream, None)
        if self.chance.random() < 0.7:
            stream.close()
        del stream  # or nobody reads on
        self.counts["streams closed"] += 1

    def tasks(self, count: int) -> list[asyncio.Task[str]]:
        started = []
        for _ in range(count):
            prompt, settings = self.case()
            way = self.chance.choice(list(ASYNC_WAYS))

            async def ask(way: str, prompt: str, settings: dict[str, Any]) -> str:
                return await ASYNC_WAYS[way](self.engine, prompt, settings)

            started.append(asyncio.create_task(ask(way, prompt, settings)))
        return started

    def tasks_cancelled(self, count: int) -> None:
        async def cancel() -> None:
            for task in self.tasks(count):
                await asyncio.sleep(self.chance.uniform(0, 0.05))
                self.counts["tasks cancelled"] += task.cancel()

        asyncio.run(cancel())

    def loop_ended(self, count: int) -> None:
        """asyncio.run cancels what is left."""

        async def leave() -> None:
            self.kept = self.tasks(count)
            await asyncio.sleep(self.chance.uniform(0, 0.2))

        asyncio.run(leave())
        self.counts["tasks left to a loop that ended"] += count

    def loop_closed(self, count: int) -> None:
        """Nobody cancels them: their loop is gone."""

        async def leave() -> None:
            self.kept = self.tasks(count)
            await asyncio.sleep(self.chance.uniform(0, 0.2))

        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave())
        loop.close()
        self.kept = []
        self.counts["tasks left to a closed loop"] += count


def test_cancels(
    engine: FusionEngine,
    report: Report,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # asyncio tells of tasks that are left on purpose, and pytest would keep them to show them.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    caplog.set_level(logging.CRITICAL, logger="asyncio")
    expected = alone(engine)

    async def warm_up() -> None:  # all threads that there will be
        prompt, settings = CASES[0]
        await asyncio.gather(*(ASYNC_WAYS["aread"](engine, prompt, settings) for _ in range(60)))

    asyncio.run(warm_up())
    before = Held.now()
    cancelling = Cancelling(engine)
    while cancelling.counts.total() < CANCELLED:
        for _ in range(6):
            cancelling.closed_after_some()
        cancelling.tasks_cancelled(4)
        cancelling.loop_ended(3)
        cancelling.loop_closed(3)
    gc.collect()
    asyncio.run(until_kv_is_free(engine))
    held = kv_in_use(engine)
    after = Held.now()
    wrong = sum(expected[case] != text for case, text in alone(engine).items())
    engine.close()
    left = [t.name for t in threading.enumerate() if t.name.startswith("fusionrag-")]
    counts = cancelling.counts
    report(
        "Cancels",
        "Streams closed or dropped after some tokens, tasks cancelled, loops ended and closed over "
        "their tasks, at random moments",
        ", ".join(f"{number} {what}" for what, number in counts.items()),
        f"{held} records of KV held, {max(0, after.threads - before.threads)} threads and "
        f"{max(0, after.descriptors - before.descriptors)} descriptors more, {len(left)} threads "
        f"after `close`; {wrong} of {len(expected)} answers wrong afterwards",
    )
    assert held == wrong == 0
    assert after.threads <= before.threads + 1
    assert after.descriptors <= before.descriptors
    assert not left
