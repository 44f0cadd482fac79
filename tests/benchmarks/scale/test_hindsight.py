"""Placements that are made with the prompts known."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.scale.hindsight import Planned, place
from benchmarks.scale.prompts import InventedTopics, Prompt
from fusionrag_integrations.ray.routing import ReplicaState
from tests.benchmarks.scale.test_results import RESULTS, on_file
from tests.benchmarks.test_commands import run_command

TOPICS = [[f"{topic}/{n}" for n in range(5)] for topic in range(8)]
PROMPTS = [
    Prompt(dict.fromkeys(chunks[:n] + chunks[n + 1 :], 10), 1, 1)
    for chunks in TOPICS
    for n in range(5)
]


def test_topics_that_share_nothing_stay_whole() -> None:
    placement = place(PROMPTS, memory_tokens=100, replicas=4, steps=20_000, seed=0)
    assert placement.hits == 1.0
    whole = [frozenset(held) for held in placement.held]
    assert all(sum(held >= set(topic) for topic in TOPICS) == 2 for held in whole)


def test_what_is_asked_for_most_is_held_where_not_all_fits() -> None:
    prompts = [Prompt({"often": 10}, 1, 1)] * 3 + [Prompt({"seldom": 10}, 1, 1)]
    placement = place(prompts, memory_tokens=10, replicas=1, steps=10, seed=0)
    assert placement.held == (frozenset({"often"}),)
    assert placement.hits == 0.75


def test_a_topic_too_popular_for_one_replica_is_held_by_two() -> None:
    """One alone would leave the other memory to five of the rest, but get 30 prompts of 40."""
    popular, rest = PROMPTS[:5] * 6, [Prompt({f"rest/{n}": 10}, 1, 1) for n in range(10)]
    placement = place(popular + rest, memory_tokens=50, replicas=2, steps=5_000, seed=0)
    assert all(len(held & set(TOPICS[0])) >= 4 for held in placement.held)


def test_a_plan_is_followed_where_loads_allow() -> None:
    placement = place(PROMPTS, memory_tokens=100, replicas=4, steps=20_000, seed=0)
    policy, names = Planned(placement), ("a", "b", "c", "d")
    idle = [ReplicaState(name, 0, ()) for name in names]
    chosen = Counter(policy.choose(prompt.chunks, idle) for prompt in PROMPTS)
    assert chosen == dict.fromkeys(names, 10)
    first = policy.choose(PROMPTS[0].chunks, idle)
    busy = [ReplicaState(name, 9 if name == first else 0, ()) for name in names]
    assert policy.choose(PROMPTS[0].chunks, busy) != first


def test_on_file_are_the_policies_of_the_other_result() -> None:
    routing = {work["name"]: work["rows"] for work in on_file("routing")["workloads"]}
    rows = on_file("hindsight")["rows"]
    assert len(rows) == 6
    for row in rows:
        hits = {r["policy"]: r["hits"]["memory"] for r in routing[row["name"]]}
        assert row["random"] == pytest.approx(hits["random"])
        assert row["ours"] == pytest.approx(hits["ours"])


def test_command() -> None:
    few = ("--results", RESULTS, "--requests", 40, "--steps", 50)
    table = run_command("scale", "hindsight", *few).stdout
    assert "| prompts | random | ours | a plan of past prompts | hindsight |" in table
    assert "| topics, 90% own |" in table


def test_the_same_every_time() -> None:
    prompts = list(InventedTopics(topics=10).drawn(60, 0))
    one, other = (place(prompts, 2000, 4, 500, seed=3) for _ in range(2))
    assert one == other
