"""Requests under load, each in a thread of its own, and when each got its tokens.

closed loop   so many clients, each of which sends its next request when it has its answer
open loop     requests arrive at given times, whether earlier ones are answered or not
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from time import perf_counter, sleep
from typing import Any

from fusionrag_integrations.bench.throughput.workload import Asked
from fusionrag_integrations.errors import FusionRAGError


class StoppedError(Exception):
    """The run was ended before the answer was."""


class TokenTimes:
    """When an answer's tokens came, in seconds of `perf_counter`."""

    def __init__(self, stopping: Event) -> None:
        self.at: list[float] = []
        self._stopping = stopping

    def add(self, at: float | None = None) -> None:
        """A token came, now or at a time. Raises as `check` does."""
        self.check()
        self.at.append(perf_counter() if at is None else at)

    def check(self) -> None:
        """Raises `StoppedError` once the run is ended."""
        if self._stopping.is_set():
            raise StoppedError


Ask = Callable[[Asked, TokenTimes], Sequence[int]]
"""Answers a request, notes when its tokens came, and returns them. Called from many threads."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One answered request: when it arrived, when its tokens came, when it ended, in seconds."""

    arrived: float
    tokens: tuple[float, ...]
    ended: float

    @property
    def ttft(self) -> float:
        """Seconds from its arrival, waiting included, to its first token."""
        return (self.tokens[0] if self.tokens else self.ended) - self.arrived

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [later - token for token, later in zip(self.tokens, self.tokens[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of all requests of one load. errors: what those that failed said."""

    answered: tuple[Timed, ...]
    errors: tuple[str, ...]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Outcome:
        """Of plain values, as `asdict` and JSON make them."""
        answered = (
            Timed(timed["arrived"], tuple(timed["tokens"]), timed["ended"])
            for timed in plain["answered"]
        )
        return cls(tuple(answered), tuple(plain["errors"]))

    @property
    def seconds(self) -> float:
        """From the first arrival to the last answer; 0 where nothing was answered."""
        first = min((timed.arrived for timed in self.answered), default=0.0)
        return max((timed.ended for timed in self.answered), default=0.0) - first

    @property
    def requests_per_s(self) -> float:
        """Answers a second; 0 where nothing was answered."""
        return len(self.answered) / self.seconds if self.answered else 0.0


def closed_loop(ask: Ask, requests: Sequence[Asked], tokens: int, clients: int) -> Outcome:
    """All requests, by so many clients. tokens: of every answer; another number is an error."""
    with _clients(clients) as (pool, stopping):
        return _outcome([pool.submit(_answer, ask, asked, tokens, stopping) for asked in requests])


def open_loop(
    ask: Ask, requests: Sequence[Asked], tokens: int, arrivals: Sequence[float]
) -> Outcome:
    """Each request at its time, in seconds from now. tokens: as in `closed_loop`."""
    with _clients(len(requests)) as (pool, stopping):
        started = perf_counter()
        futures = []
        for asked, after in zip(requests, arrivals, strict=True):
            at = started + after
            sleep(max(0.0, at - perf_counter()))
            futures.append(pool.submit(_answer, ask, asked, tokens, stopping, at))
        return _outcome(futures)


def _answer(
    ask: Ask, asked: Asked, tokens: int, stopping: Event, arrived: float | None = None
) -> Timed:
    """arrived: by default now."""
    at = perf_counter() if arrived is None else arrived
    times = TokenTimes(stopping)
    token_ids = ask(asked, times)
    ended = perf_counter()
    if len(token_ids) != tokens:
        raise FusionRAGError(f"An answer has {len(token_ids)} tokens, and should have {tokens}.")
    return Timed(at, tuple(times.at), ended)


def _outcome(futures: Sequence[Future[Timed]]) -> Outcome:
    wait(futures)
    failed = [error for future in futures if (error := future.exception()) is not None]
    return Outcome(
        tuple(future.result() for future in futures if future.exception() is None),
        tuple(f"{type(error).__name__}: {error}" for error in failed),
    )


@contextmanager
def _clients(count: int) -> Iterator[tuple[ThreadPoolExecutor, Event]]:
    """Threads, and what ends their requests at the next token; set when the block is left."""
    stopping = Event()
    pool = ThreadPoolExecutor(count, "fusionrag-client")
    try:
        yield pool, stopping
    finally:
        stopping.set()
        pool.shutdown(cancel_futures=True)
