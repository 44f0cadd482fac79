"""What the package's own policy is compared with."""

from __future__ import annotations

from collections import Counter

from benchmarks.scale.other_policies import (
    HotChunksTwice,
    Learned,
    Owner,
    Plain,
    first_chunk,
    longest_chunk,
    main_document,
)
from benchmarks.scale.policies import AtRandom, ByMemory, PrefixAffinity, RoundRobin, TwoChoices
from fusionrag_integrations.ray.routing import ReplicaState, owner, rank

NAMES = ("a", "b", "c", "d")


def replicas(**held: set[str]) -> list[ReplicaState]:
    return [ReplicaState(name, 0, held.get(name, set())) for name in NAMES]


def loaded(*loads: int) -> list[ReplicaState]:
    return [ReplicaState(name, load, ()) for name, load in zip(NAMES, loads, strict=True)]


def test_ours_is_the_packages() -> None:
    prompt, state = {"x": 10, "y": 20}, replicas(c={"y"})
    assert ByMemory().choose(prompt, state) == rank(prompt, state)[0] == "c"
    assert ByMemory(reported=False).choose(prompt, state) == rank(prompt, replicas())[0]


def test_random_and_round_robin_spread() -> None:
    for policy in (AtRandom(), RoundRobin()):
        counts = Counter(policy.choose({"x": 1}, replicas()) for _ in range(400))
        assert all(60 < counts[name] < 140 for name in NAMES)


def test_two_choices_never_takes_the_most_loaded() -> None:
    policy = TwoChoices()
    assert "d" not in {policy.choose({}, loaded(1, 2, 3, 9)) for _ in range(100)}


class TestPrefixAffinity:
    def test_the_longest_beginning_that_was_sent(self) -> None:
        policy = PrefixAffinity()
        first = policy.choose({"x": 10, "y": 10}, replicas())
        other = policy.choose({"z": 10}, replicas())
        assert other != first  # nothing of it matches: to where least was sent
        assert policy.choose({"x": 10, "y": 10, "z": 10}, replicas()) == first
        assert policy.choose({"z": 10, "x": 10, "y": 10}, replicas()) == other

    def test_an_order_of_its_own_matches_nothing(self) -> None:
        policy = PrefixAffinity()
        first = policy.choose({"x": 10, "y": 10}, replicas())
        assert policy.choose({"y": 10, "x": 10}, replicas()) != first

    def test_loads_that_differ_too_much(self) -> None:
        policy = PrefixAffinity(imbalanced=4)
        first = policy.choose({"x": 10}, loaded(0, 0, 0, 0))
        full = [ReplicaState(n, 9 if n == first else 0, ()) for n in NAMES]
        assert policy.choose({"x": 10}, full) != first


class TestOthers:
    def test_plain_goes_to_memory_then_to_owners(self) -> None:
        assert Plain().choose({"x": 10, "y": 5}, replicas(b={"x"})) == "b"
        assert Plain().choose({"x": 10}, replicas()) == owner("x", NAMES)

    def test_owners_of_one_thing(self) -> None:
        prompt = {"1/a": 10, "2/b": 15, "1/c": 10}
        for key, owned in ((first_chunk, "1/a"), (longest_chunk, "2/b"), (main_document, "1")):
            assert Owner(key).choose(prompt, replicas()) == owner(owned, NAMES)

    def test_a_directory_learns_where_chunks_were_sent(self) -> None:
        policy = Learned()
        first = owner("x", NAMES)
        full = [ReplicaState(n, 9 if n == first else 0, ()) for n in NAMES]
        moved = policy.choose({"x": 10}, full)
        assert moved != first
        assert policy.choose({"x": 10}, replicas()) == moved

    def test_hot_chunks_have_two_owners(self) -> None:
        policy = HotChunksTwice()
        for number in range(50):
            policy.choose({f"cold{number}": 1}, replicas())
        first = owner("hot", NAMES)
        second = owner("hot", [name for name in NAMES if name != first])
        busy = [ReplicaState(n, 1 if n == first else 0, ()) for n in NAMES]
        chosen = {policy.choose({"hot": 1}, busy) for _ in range(20)}
        assert second in chosen
