"""Which replica answers a prompt."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from math import ceil

import pytest

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.ray.routing import ReplicaState, owner, rank

NAMES = ("a", "b", "c", "d")
CHUNKS = [f"chunk-{number}" for number in range(400)]


def idle(*names: str, **held: set[str]) -> list[ReplicaState]:
    """Replicas without load, and what they hold in memory."""
    return [ReplicaState(name, 0, held.get(name, set())) for name in names]


def loaded(**loads: int) -> list[ReplicaState]:
    return [ReplicaState(name, load, set()) for name, load in loads.items()]


class TestMemory:
    def test_most_tokens_in_memory_first(self) -> None:
        prompt = {"x": 100, "y": 300, "z": 50}
        replicas = idle(*"abcd", b={"x", "z"}, c={"y"}, d={"x", "y"})
        assert rank(prompt, replicas)[:3] == ["d", "c", "b"]

    def test_tokens_count_not_chunks(self) -> None:
        replicas = idle("a", "b", a={"x", "y"}, b={"z"})
        assert rank({"x": 10, "y": 10, "z": 30}, replicas) == ["b", "a"]

    def test_what_is_in_memory_counts_more_than_what_is_owned(self) -> None:
        prompt = {"held": 100} | dict.fromkeys(
            [chunk for chunk in CHUNKS if owner(chunk, "ab") == "b"][:2], 100
        )
        assert rank(prompt, idle("a", "b", a={"held"})) == ["a", "b"]

    def test_an_unreported_chunk_counts_for_its_owner(self) -> None:
        for chunk in CHUNKS[:50]:
            assert rank({chunk: 10}, idle(*NAMES))[0] == owner(chunk, NAMES)

    def test_a_reported_chunk_counts_nothing_for_its_owner(self) -> None:
        (chunk, *_) = [chunk for chunk in CHUNKS if owner(chunk, NAMES) == "a"]
        assert rank({chunk: 10}, idle(*NAMES, c={chunk}))[0] == "c"


class TestRoom:
    def test_a_replica_without_room_comes_last_whatever_it_holds(self) -> None:
        full = ReplicaState("a", 1, {"x"}, room=1)
        assert rank({"x": 10}, [full, ReplicaState("b", 1, set(), room=2)]) == ["b", "a"]


class TestOwners:
    def test_a_replica_that_goes_moves_its_own_chunks_alone(self) -> None:
        for chunk in CHUNKS:
            before = owner(chunk, NAMES)
            assert owner(chunk, "abc") == before or before == "d"

    def test_one_that_comes_takes_its_share_and_moves_nothing_else(self) -> None:
        moved = [c for c in CHUNKS if owner(c, [*NAMES, "e"]) != owner(c, NAMES)]
        assert {owner(chunk, [*NAMES, "e"]) for chunk in moved} == {"e"}
        assert 0.1 < len(moved) / len(CHUNKS) < 0.3

    def test_are_spread_evenly(self) -> None:
        counts = Counter(owner(chunk, NAMES) for chunk in CHUNKS)
        assert all(70 < counts[name] < 130 for name in NAMES)

    def test_the_order_of_replicas_changes_nothing(self) -> None:
        prompt = dict.fromkeys(CHUNKS[:5], 10)
        assert rank(prompt, idle(*NAMES)) == rank(prompt, idle(*reversed(NAMES)))

    def test_every_process_agrees(self) -> None:
        code = (
            "from fusionrag_integrations.ray.routing import owner\n"
            f"print(*[owner(c, {NAMES!r}) for c in {CHUNKS[:40]!r}], sep='')"
        )
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        assert said.strip() == "".join(owner(chunk, NAMES) for chunk in CHUNKS[:40])


class TestLoad:
    def test_a_full_replica_comes_last_whatever_it_holds(self) -> None:
        replicas = [ReplicaState("a", 9, {"x"}), ReplicaState("b", 2, ()), ReplicaState("c", 3, ())]
        assert rank({"x": 10}, replicas)[-1] == "a"

    @pytest.mark.parametrize("slack", [1.0, 1.25, 2.0])
    def test_no_replica_exceeds_the_bound(self, slack: float) -> None:
        """One topic that everybody asks about: it has to spread."""
        loads: Counter[str] = Counter()
        for asked in range(1, 101):
            replicas = [
                ReplicaState(name, loads[name], {"x"} if name == "a" else ()) for name in NAMES
            ]
            loads[rank({"x": 10}, replicas, slack=slack)[0]] += 1
            assert max(loads.values()) <= ceil(slack * asked / len(NAMES))

    def test_memory_wins_below_the_bound(self) -> None:
        replicas = [ReplicaState("a", 5, {"x"}), *loaded(b=4, c=4, d=4)]
        assert rank({"x": 10}, replicas)[0] == "a"

    def test_less_load_wins_where_little_is_in_memory(self) -> None:
        prompt = {"x": 1, "y": 30}
        replicas = [ReplicaState("a", 6, {"x", "y"}), ReplicaState("b", 3, {"y"})]
        assert rank(prompt, replicas)[0] == "b"

    def test_of_full_ones_the_least_loaded_is_first(self) -> None:
        assert rank({}, loaded(a=30, b=20, c=0, d=1), slack=1.0) == ["c", "d", "b", "a"]


class TestEdges:
    def test_no_chunks_go_to_the_least_loaded(self) -> None:
        assert rank({}, loaded(a=2, b=0, c=1))[0] == "b"

    def test_ties_are_the_same_every_time_and_fall_on_all(self) -> None:
        held = set(CHUNKS)
        replicas = idle(*NAMES, a=held, b=held, c=held, d=held)
        first = [rank({chunk: 10}, replicas)[0] for chunk in CHUNKS[:60]]
        assert first == [rank({chunk: 10}, replicas)[0] for chunk in CHUNKS[:60]]
        assert set(first) == set(NAMES)

    def test_one_replica(self) -> None:
        assert rank({"x": 10}, loaded(a=50)) == ["a"]

    def test_none(self) -> None:
        assert rank({"x": 10}, []) == []

    def test_chunks_without_tokens(self) -> None:
        assert sorted(rank({"x": 0}, idle(*NAMES))) == [*NAMES]

    @pytest.mark.parametrize("slack", [0.99, 0.0, -1.0, float("nan")])
    def test_a_slack_below_one_is_refused(self, slack: float) -> None:
        with pytest.raises(InvalidInputError, match=r"The slack is .*; give 1 or more"):
            rank({}, [], slack=slack)


def test_routing_needs_no_ray() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import fusionrag_integrations.ray.routing\n"
        "print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
