"""Requests by many threads, each in one of several ways, while things go wrong."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from fusionrag_integrations import FusionEngine
from tests.long.soak.cases import CASES, Case, Expected
from tests.long.soak.clients import Clients
from tests.long.soak.faults import Damage, Disk, Writing

THREADS = 24


class Soak:
    """Requests and faults, and what was wrong."""

    def __init__(
        self, engine: FusionEngine, port: int, expected: Expected, damage: Damage, disk: Disk
    ) -> None:
        """port: of a server over the engine."""
        self.engine = engine
        self.expected = expected
        self.clients = Clients(port)
        self.damage = damage
        self.disk = disk
        self.writing = Writing(engine, disk, expected.of_others)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._unclear: list[tuple[Case, str, set[str]]] = []
        self._counting = threading.Lock()
        self._ways: dict[Callable[[Case, random.Random], None], int] = {
            self._read: 40,
            self._read_by_http: 20,
            self._close: 10,
            self._cancel: 10,
            self._reset: 18,
            self._kill: 2,
        }

    def run(self, requests: range) -> None:
        with self._faults(), ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(self._ask, requests))
        for case, text, damages in self._unclear:
            if text not in self.expected.with_two(case, damages):
                self.wrong.append(f"{case.settings}: {text!r} without one of {damages}")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        end = threading.Event()
        works = (self.damage.run, self.disk.run, self.writing.run)
        with ThreadPoolExecutor(len(works)) as threads:
            going_on = [threads.submit(work, end) for work in works]
            try:
                yield
            finally:
                end.set()
            for work in going_on:
                work.result()

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        case = chance.choice(CASES)
        (way,) = chance.choices(list(self._ways), list(self._ways.values()))
        way(case, chance)

    def _count(self, *whats: str) -> None:
        with self._counting:
            self.counts.update(whats)

    def _read(self, case: Case, chance: random.Random) -> None:
        damages, changes = self.damage.count, self.disk.changes
        answer = self.engine.answer(case.prompt, case.settings)
        self._check(case, answer.text, damages, fell_back=bool(answer.fallbacks))
        self._count("read", *self._more(case, answer.finish_reason, changes))

    def _read_by_http(self, case: Case, chance: random.Random) -> None:
        damages, changes = self.damage.count, self.disk.changes
        text, report = self.clients.read(case, stream=chance.random() < 0.5)
        self._check(case, text, damages, fell_back=bool(report["fallbacks"]))
        self._count("read by HTTP", *self._more(case, report["finish_reason"], changes))

    def _more(self, case: Case, finish_reason: str, changes: int) -> Iterator[str]:
        """What else is counted of an answer that was read."""
        if case.settings.stop and finish_reason == "stop":
            yield "stopped"
        if self.disk.was_full_since(changes):
            yield "on a full disk"

    def _check(self, case: Case, text: str, damages: int, *, fell_back: bool) -> None:
        """damages: how many there were before the answer."""
        keys = self.damage.since(damages)
        if fell_back:
            self._count("fell back")
        if text in self.expected.possible(case, keys, fell_back=fell_back):
            return
        if fell_back and len(keys) > 1:
            self._unclear.append((case, text, keys))
        else:
            self.wrong.append(f"{case.settings}: {text!r}, fell back: {fell_back}")

    def _close(self, case: Case, chance: random.Random) -> None:
        """What was read until then is how the answer begins."""
        damages = self.damage.count
        stream = self.engine.stream(case.prompt, case.settings)
        text = "".join(next(stream, "") for _ in range(chance.randrange(4)))
        if chance.random() < 0.7:
            stream.close()
        possible = self.expected.possible(case, self.damage.since(damages), fell_back=None)
        if not any(whole.startswith(text) for whole in possible):
            self.wrong.append(f"{case.settings}: began with {text!r}")
        self._count("closed")

    def _cancel(self, case: Case, chance: random.Random) -> None:
        async def cancel() -> None:
            task = asyncio.create_task(self.engine.stream(case.prompt, case.settings).aread())
            await asyncio.sleep(chance.uniform(0, 0.2))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(cancel())
        self._count("cancelled")

    def _reset(self, case: Case, chance: random.Random) -> None:
        self.clients.reset(case, chance)
        self._count("reset")

    def _kill(self, case: Case, chance: random.Random) -> None:
        self.clients.kill(case, chance)
        self._count("killed")
