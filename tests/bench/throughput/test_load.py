"""Requests under load: none is lost, and times are what a client sees."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial
from time import perf_counter, sleep

import pytest

from fusionrag_integrations.bench.throughput.load import (
    Outcome,
    Timed,
    TokenTimes,
    closed_loop,
    open_loop,
)
from fusionrag_integrations.bench.throughput.rows import percentile_ms
from fusionrag_integrations.bench.throughput.workload import Asked
from tests.steps import PATIENCE

REQUESTS = [Asked(f"request {number}", (number,)) for number in range(12)]


class Seen:
    """Answers with two tokens after a while, and counts."""

    def __init__(self, seconds: float = 0.01) -> None:
        self.asked: Counter[int] = Counter()
        self.most = 0
        self._now = 0
        self._seconds = seconds
        self._counting = threading.Lock()

    def __call__(self, asked: Asked, times: TokenTimes) -> Sequence[int]:
        with self._counting:
            self.asked[asked.token_ids[0]] += 1
            self._now += 1
            self.most = max(self.most, self._now)
        for _ in range(2):
            sleep(self._seconds)
            times.add()
        with self._counting:
            self._now -= 1
        return [1, 2]


@pytest.mark.parametrize("clients", [1, 3])
def test_a_closed_loop_answers_each_request_once(clients: int) -> None:
    seen = Seen()
    outcome = closed_loop(seen, REQUESTS, 2, clients)
    assert seen.asked == dict.fromkeys(range(12), 1)
    assert seen.most == clients
    assert (len(outcome.answered), outcome.errors) == (12, ())
    for timed in outcome.answered:
        assert 0.01 <= timed.ttft <= timed.ended - timed.arrived
        assert len(timed.gaps) == 1
        assert timed.gaps[0] >= 0.01
    assert outcome.requests_per_s == pytest.approx(12 / outcome.seconds)
    assert outcome.seconds >= 12 * 0.02 / clients


def test_an_open_loop_waits_for_nobody() -> None:
    seen = Seen(seconds=0.2)
    outcome = open_loop(seen, REQUESTS, 2, [0.005 * number for number in range(12)])
    assert seen.asked == dict.fromkeys(range(12), 1)
    assert seen.most == 12
    first, *_, last = sorted(timed.arrived for timed in outcome.answered)
    assert last - first == pytest.approx(0.055)


def test_waiting_counts_from_the_arrival() -> None:
    lock = threading.Lock()

    def one_at_a_time(asked: Asked, times: TokenTimes) -> Sequence[int]:
        with lock:
            sleep(0.05)
            times.add()
            return [1]

    outcome = open_loop(one_at_a_time, REQUESTS[:3], 1, [0.0, 0.0, 0.0])
    ttft = sorted(timed.ttft for timed in outcome.answered)
    assert ttft[0] >= 0.05
    assert ttft[1] >= 0.1
    assert ttft[2] >= 0.15


def test_a_request_that_fails_is_counted_and_ends_nothing() -> None:
    def sometimes(asked: Asked, times: TokenTimes) -> Sequence[int]:
        if asked.token_ids[0] in (2, 5):
            raise RuntimeError(f"no {asked.token_ids[0]}")
        times.add()
        return [1] if asked.token_ids[0] == 7 else [1, 2]

    outcome = closed_loop(sometimes, REQUESTS, 2, 2)
    assert len(outcome.answered) == 9
    assert sorted(outcome.errors) == [
        "FusionRAGError: An answer has 1 tokens, and should have 2.",
        "RuntimeError: no 2",
        "RuntimeError: no 5",
    ]


def test_an_outcome_without_answers_has_no_rate() -> None:
    assert (Outcome((), ("x",)).requests_per_s, Outcome((), ()).seconds) == (0.0, 0.0)


def test_an_answer_without_a_token_that_shows_ends_with_its_first() -> None:
    assert Timed(1.0, (), 3.0).ttft == 2.0


@pytest.mark.parametrize("arrivals", [None, [0.0] * 11 + [60.0]])
def test_an_interruption_ends_requests_at_their_next_token(arrivals: list[float] | None) -> None:
    most = 3 if arrivals is None else 11
    begun, asked = threading.Semaphore(0), Counter[int]()

    def endless(request: Asked, times: TokenTimes) -> Sequence[int]:
        asked[request.token_ids[0]] += 1
        begun.release()
        while True:
            sleep(0.01)
            times.add()

    def interrupt() -> None:
        for _ in range(most):  # by then the main thread waits, for answers or for an arrival
            assert begun.acquire(timeout=PATIENCE)
        sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = threading.active_count()
    interrupting = threading.Thread(target=interrupt)
    started = perf_counter()
    interrupting.start()
    run = partial(closed_loop, clients=3)
    if arrivals is not None:
        run = partial(open_loop, arrivals=arrivals)
    with pytest.raises(KeyboardInterrupt):
        run(endless, REQUESTS, 2)
    interrupting.join()
    assert perf_counter() - started < PATIENCE
    assert threading.active_count() == before
    assert len(asked) == most


def test_percentiles_lie_between_values() -> None:
    assert percentile_ms([0.004, 0.001, 0.003, 0.002], 50) == pytest.approx(2.5)
    assert percentile_ms([0.001 * (n + 1) for n in range(101)], 99) == pytest.approx(100.0)
    assert percentile_ms([], 50) is None
