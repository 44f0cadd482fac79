"""The simulation, against what queueing theory and arithmetic say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.scale.outcome import outcome
from benchmarks.scale.parameters import Cluster, Service, Speed
from benchmarks.scale.policies import AtRandom, ByMemory, RoundRobin, TwoChoices
from benchmarks.scale.prompts import InventedTopics, Prompt
from benchmarks.scale.simulation import Run, simulate
from fusionrag_integrations.bench.throughput.workload import poisson
from fusionrag_integrations.errors import InvalidInputError

SERVICE = Service(
    bytes_a_token=1000.0,
    recomputed=0.15,
    fixed_s=1.0,
    row_s=0.0,
    pair_s=0.0,
    decode_step_s=0.0,
    decode_device_s=0.0,
    disk=Speed(0.01, 1e6),
    object_storage=Speed(0.5, 1e5),
    object_shared_bytes_s=1e12,
)
WITHOUT_KV = Prompt({}, 1, 1)
PAIR = Prompt({"x": 100, "y": 300}, 1, 1)
TOPICS = InventedTopics(topics=6, chunks_a_topic=5, retrieved=3, chunk_tokens=10)


def cluster(replicas: int = 1, memory: float = 1e9, disk: float = 0, **service: float) -> Cluster:
    return Cluster(replicas, memory, disk, replace(SERVICE, **service))


class TestQueues:
    @pytest.mark.parametrize("busy", [0.5, 0.8])
    def test_md1_waits_as_pollaczek_and_khinchine_say(self, busy: float) -> None:
        count = 40_000
        run = simulate(cluster(), [WITHOUT_KV] * count, poisson(count, busy, 3), AtRandom())
        found = outcome(run, 0.1)
        assert found.wait_s == pytest.approx(busy / (2 * (1 - busy)), rel=0.1)
        assert found.utilisation == pytest.approx(busy, rel=0.03)

    def test_mm1_waits_twice_as_long(self) -> None:
        count, busy = 60_000, 0.6
        tokens = np.random.default_rng(4).exponential(1e6, count)
        prompts = [Prompt({}, int(number), 1) for number in tokens]
        served = cluster(fixed_s=0.0, row_s=1e-6)
        found = outcome(simulate(served, prompts, poisson(count, busy, 5), AtRandom()), 0.1)
        assert found.wait_s == pytest.approx(busy / (1 - busy), rel=0.1)

    def test_littles_law(self) -> None:
        count = 2_000
        prompts = list(TOPICS.drawn(count, 0))
        run = simulate(cluster(4, memory=200_000), prompts, poisson(count, 2.0, 1), ByMemory())
        stays = [request.ended - request.arrived for request in run.requests]
        assert run.request_seconds == pytest.approx(sum(stays))

    def test_every_request_is_answered_once_after_it_came(self) -> None:
        count = 500
        run = simulate(cluster(3), TOPICS.drawn(count, 0), poisson(count, 2.0, 1), TwoChoices())
        assert len(run.requests) == count
        for r in run.requests:
            assert r.arrived <= r.ready <= r.started < r.first_token <= r.ended
        assert sum(run.busy_s.values()) == pytest.approx(count * 1.0)

    def test_steps_of_decode_delay_others_and_the_answer(self) -> None:
        served = cluster(decode_step_s=0.3, decode_device_s=0.1)
        run = simulate(served, [Prompt({}, 1, 10)] * 2, [0.0, 0.0], AtRandom())
        first, second = run.requests
        assert (first.first_token, first.ended) == (1.0, pytest.approx(4.0))
        assert second.started == pytest.approx(2.0)


class TestKV:
    def test_all_hits_where_all_fits(self) -> None:
        count = 400
        run = simulate(cluster(2), TOPICS.drawn(count, 0), poisson(count, 1.0, 1), RoundRobin())
        assert outcome(run, 0.5).hits["memory"] == 1.0

    def test_none_without_memory_and_disk(self) -> None:
        run = simulate(cluster(memory=0), [PAIR] * 4, [0.0, 9.0, 18.0, 27.0], AtRandom())
        assert outcome(run, 0.0).hits == {"memory": 0.0, "disk": 0.0, "object storage": 1.0}

    def test_each_tier_takes_its_time(self) -> None:
        """400,000 bytes: 4 s from object storage, 0.4 s from disk, then from memory at once."""
        run = simulate(cluster(disk=1e9), [PAIR] * 2, [0.0, 100.0], AtRandom())
        assert [r.ready - r.arrived for r in run.requests] == [pytest.approx(4.5), 0.0]
        run = simulate(cluster(memory=0, disk=1e9), [PAIR] * 2, [0.0, 100.0], AtRandom())
        assert run.requests[1].ready - 100.0 == pytest.approx(0.41)

    def test_a_link_serves_one_transfer_after_the_other(self) -> None:
        other = Prompt({"z": 400}, 1, 1)
        run = simulate(cluster(), [PAIR, other], [0.0, 0.0], AtRandom())
        assert [r.ready for r in run.requests] == [pytest.approx(4.5), pytest.approx(8.5)]

    def test_replicas_share_object_storage(self) -> None:
        served = cluster(2, object_shared_bytes_s=1e5)
        run = simulate(served, [PAIR, Prompt({"z": 400}, 1, 1)], [0.0, 0.0], RoundRobin())
        assert [r.ready for r in run.requests] == [pytest.approx(4.5), pytest.approx(8.5)]

    def test_who_asks_for_kv_on_its_way_waits_for_it(self) -> None:
        run = simulate(cluster(), [PAIR, PAIR], [0.0, 1.0], AtRandom())
        assert run.requests[1].found == {"memory": 400, "disk": 0, "object storage": 0}
        assert run.requests[1].ready == pytest.approx(4.5)

    def test_full_attention_fetches_nothing(self) -> None:
        run = simulate(cluster(recomputed=1.0), [PAIR], [0.0], AtRandom())
        assert run.requests[0].ready == 0.0
        assert sum((run.requests[0].found or {}).values()) == 0

    def test_old_reports_find_less(self) -> None:
        def hit(every: float) -> float:
            count = 3_000
            told = replace(cluster(4, memory=8e4), report_every_s=every)
            run = simulate(told, TOPICS.drawn(count, 0), poisson(count, 2.0, 1), ByMemory())
            return outcome(run).hits["memory"]

        assert hit(0.0) > hit(1e9) + 0.02


def ends(run: Run) -> list[tuple[str, float]]:
    return [(request.replica, request.ended) for request in run.requests]


def test_the_same_every_time() -> None:
    runs = [
        simulate(cluster(3), TOPICS.drawn(300, 7), poisson(300, 2.0, 7), ByMemory())
        for _ in range(2)
    ]
    assert ends(runs[0]) == ends(runs[1])
    assert list(TOPICS.drawn(50, 7)) != list(TOPICS.drawn(50, 8))


def test_computed_rows_and_pairs_count() -> None:
    service = replace(SERVICE, fixed_s=0.0, row_s=1.0)
    assert service.prefill_s(1000, 100) == pytest.approx(250.0)
    pairs = replace(SERVICE, fixed_s=0.0, pair_s=1.0, recomputed=1.0)
    assert pairs.prefill_s(1000, 100) == pytest.approx(1100**2 / 2)


def test_an_impossible_cluster() -> None:
    with pytest.raises(InvalidInputError, match="give at least 1 replica"):
        cluster(0)
