"""What a tier holds: budgets to the byte, scores, pins."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.kv.lrfu import UNUSED, LRFUScores
from fusionrag_integrations.store.kv.tier import Tier


def tier(
    budget: int | None = 10, pinned: Counter[str] | None = None
) -> tuple[Tier[str], LRFUScores, Counter[str]]:
    scores, pins = LRFUScores(8.0), Counter() if pinned is None else pinned
    return Tier(budget, scores, pins), scores, pins


def use(held: Tier[str], scores: LRFUScores, key: str, nbytes: int = 1) -> bool:
    scores.touch(key)
    return key in held or held.admit(key, key.upper(), nbytes)


class TestHeat:
    def test_what_was_never_used_is_cold(self) -> None:
        scores = LRFUScores(4.0)
        assert scores.of("a") == UNUSED
        scores.touch("a")
        assert scores.of("a") > UNUSED
        scores.forget("a")
        assert (scores.of("a"), len(scores)) == (UNUSED, 0)

    @given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
    def test_a_use_counts_half_after_a_half_life(self, uses: list[str]) -> None:
        scores = LRFUScores(5.0)
        for key in uses:
            scores.touch(key)
        now = len(uses) / 5.0
        for key in set(uses):
            ages = [len(uses) - time for time, used in enumerate(uses, start=1) if used == key]
            assert 2.0 ** (scores.of(key) - now) == pytest.approx(sum(0.5 ** (a / 5) for a in ages))

    def test_it_never_overflows(self) -> None:
        scores = LRFUScores(0.5)
        for _ in range(5000):
            scores.touch("a")
        assert scores.of("a") == pytest.approx(5000 / 0.5, abs=3)


class TestBudgets:
    def test_what_fits_is_held(self) -> None:
        held, scores, _ = tier()
        assert use(held, scores, "a", 4)
        assert use(held, scores, "b", 6)
        assert (held.used, len(held), held.evictions) == (10, 2, 0)
        assert (held.get("a"), held.get("c")) == ("A", None)

    def test_the_coldest_gives_way(self) -> None:
        held, scores, _ = tier(3)
        for key in "abcab":
            use(held, scores, key)
        assert use(held, scores, "d")
        assert sorted(held) == ["a", "b", "d"]
        assert held.evictions == 1

    def test_what_is_hotter_than_the_newcomer_stays(self) -> None:
        held, scores, _ = tier(2)
        for key in "abababab":
            use(held, scores, key)
        assert not use(held, scores, "c")
        assert sorted(held) == ["a", "b"]

    def test_nothing_is_evicted_in_vain(self) -> None:
        held, scores, _ = tier(3)
        for key in "abbbbbb":
            use(held, scores, key)
        assert not held.admit("c", "C", 3)  # a is as cold as c, and b isn't
        scores.touch("c")
        assert not held.admit("c", "C", 3)
        assert sorted(held) == ["a", "b"]

    def test_what_is_larger_than_the_budget_is_not_held(self) -> None:
        held, scores, _ = tier(3)
        use(held, scores, "a")
        assert not use(held, scores, "b", 4)
        assert list(held) == ["a"]

    def test_none_is_no_bound_and_zero_holds_nothing(self) -> None:
        held, scores, _ = tier(None)
        assert all(use(held, scores, str(i), 10**12) for i in range(9))
        held, scores, _ = tier(0)
        assert not use(held, scores, "a")

    def test_a_negative_one_is_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="-1 bytes"):
            tier(-1)

    def test_a_key_is_replaced(self) -> None:
        held, scores, _ = tier()
        use(held, scores, "a", 4)
        assert held.admit("a", "other", 7)
        assert (held.get("a"), held.used) == ("other", 7)


class TestPins:
    def test_what_is_pinned_stays(self) -> None:
        held, scores, pins = tier(2, Counter("a"))
        use(held, scores, "a")
        use(held, scores, "b")
        assert use(held, scores, "c")
        assert sorted(held) == ["a", "c"]
        pins["c"] += 1
        assert not use(held, scores, "d")
        pins["a"] -= 1
        assert use(held, scores, "d")
        assert sorted(held) == ["c", "d"]

    def test_a_key_that_cannot_be_evicted_stays(self) -> None:
        def refuse(key: str) -> None:
            raise OSError(key)

        scores = LRFUScores(8.0)
        held: Tier[str] = Tier(1, scores, Counter(), refuse)
        use(held, scores, "a")
        scores.touch("b")
        with pytest.raises(OSError, match="a"):
            held.admit("b", "B", 1)
        assert (list(held), held.used, held.evictions) == (["a"], 1, 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["use", "discard", "pin", "unpin", "forget"]),
            st.sampled_from("abcdefgh"),
            st.integers(1, 6),
        ),
        max_size=80,
    )
)
def test_it_is_as_a_plain_model(steps: list[tuple[str, str, int]]) -> None:
    """Against sorting everything anew each time."""
    held, scores, pins = tier(12)
    model: dict[str, int] = {}
    for step, key, nbytes in steps:
        if step == "use":
            scores.touch(key)
            if key not in model:
                colder = sorted(
                    (k for k in model if scores.of(k) <= scores.of(key) and not pins[k]),
                    key=scores.of,
                )
                room, out = 12 - sum(model.values()), []
                while room < nbytes and colder:
                    out.append(colder.pop(0))
                    room += model[out[-1]]
                assert held.admit(key, key, nbytes) == (room >= nbytes)
                if room >= nbytes:
                    for victim in out:
                        del model[victim]
                    model[key] = nbytes
        elif step == "discard":
            held.discard(key)
            model.pop(key, None)
        elif step == "forget" and key not in model:
            scores.forget(key)
        elif step == "pin":
            pins[key] += 1
        elif step == "unpin" and pins[key]:
            pins[key] -= 1
        assert set(held) == set(model)
        assert held.used == sum(model.values()) <= 12
