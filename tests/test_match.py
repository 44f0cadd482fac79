"""Finding known texts in a prompt, and deciding which chunk each of them is."""

from __future__ import annotations

import random

import pytest

from fusionrag_integrations.match import ANCHOR, MIN_PREFIX, ChunkMatcher, FoundText, resolve
from fusionrag_integrations.types import Chunk, ChunkRecord, EncodedChunk, KVHandle

MIRA = "Mira founded the company in the small town by the sea, and it makes brass lamps."
FOX = "The quick brown fox jumps over the lazy dog near the old bank of the river Oder."
SHORT = "It makes lamps."


def handle(chunk_id: str) -> KVHandle:
    return KVHandle(chunk_id, "00")


def bounds(found: list[FoundText]) -> list[tuple[int, int]]:
    return [(text.start, text.stop) for text in found]


class TestFind:
    def test_known_texts_are_found_where_they_stand(self) -> None:
        matcher = ChunkMatcher([("fox", FOX), ("mira", MIRA)])
        prompt = f"Context: {MIRA}\n\n{FOX} Question: who?"
        found = matcher.find(prompt)
        assert [(f.chunk_ids, f.complete) for f in found] == [(("mira",), True), (("fox",), True)]
        assert [prompt[a:b] for a, b in bounds(found)] == [MIRA, FOX]

    def test_what_is_not_known_is_not_found(self) -> None:
        assert ChunkMatcher([("fox", FOX)]).find(f"Context: {MIRA}") == []
        assert ChunkMatcher([]).find(FOX) == []

    def test_each_occurrence_is_found(self) -> None:
        found = ChunkMatcher([("fox", FOX)]).find(FOX + FOX)
        assert bounds(found) == [(0, len(FOX)), (len(FOX), 2 * len(FOX))]

    def test_all_chunks_with_the_text_are_named(self) -> None:
        matcher = ChunkMatcher([("one", FOX), ("two", FOX), ("mira", MIRA)])
        assert [f.chunk_ids for f in matcher.find(FOX)] == [("one", "two")]

    def test_the_longest_text_at_one_place_wins(self) -> None:
        matcher = ChunkMatcher([("fox", FOX), ("both", f"{FOX} {MIRA}"), ("mira", MIRA)])
        assert [f.chunk_ids for f in matcher.find(f"{FOX} {MIRA}")] == [("both",)]

    def test_a_whole_text_wins_over_a_longer_cut_one(self) -> None:
        matcher = ChunkMatcher([("fox", FOX), ("both", f"{FOX} {MIRA}")])
        (found,) = matcher.find(f"{FOX} Mira founded something else")
        assert (found.chunk_ids, found.complete) == (("fox",), True)

    def test_texts_that_overlap_are_found_from_the_left(self) -> None:
        middle = f"{FOX[40:]} {MIRA[:40]}"
        matcher = ChunkMatcher([("fox", FOX), ("middle", middle), ("mira", MIRA)])
        assert [f.chunk_ids for f in matcher.find(f"{FOX} {MIRA}")] == [("fox",), ("mira",)]

    def test_a_cut_text_is_found_as_far_as_it_goes(self) -> None:
        found = ChunkMatcher([("fox", FOX)]).find(f"x {FOX[:70]}... and so on")
        assert found == [FoundText(2, 72, ("fox",), complete=False)]

    @pytest.mark.parametrize(("length", "count"), [(MIN_PREFIX - 1, 0), (MIN_PREFIX, 1)])
    def test_a_short_beginning_is_not_enough(self, length: int, count: int) -> None:
        assert len(ChunkMatcher([("fox", FOX)]).find(f"{FOX[:length]}...")) == count

    def test_the_end_of_a_text_alone_is_not_found(self) -> None:
        assert ChunkMatcher([("fox", FOX)]).find(FOX[5:]) == []

    def test_a_beginning_that_fails_hides_nothing_behind_it(self) -> None:
        start = f"{FOX[:ANCHOR]} {MIRA}"
        matcher = ChunkMatcher([("fox", FOX), ("mira", MIRA)])
        assert [f.chunk_ids for f in matcher.find(start)] == [("mira",)]

    def test_of_two_cut_texts_the_one_that_goes_further_is_found(self) -> None:
        matcher = ChunkMatcher([("a", FOX[:66] + "a" * 40), ("b", FOX[:70] + "b" * 20)])
        (found,) = matcher.find(FOX)
        assert (found.chunk_ids, found.stop) == (("b",), 70)

    def test_short_texts_need_a_handle(self) -> None:
        matcher = ChunkMatcher([("short", SHORT), ("mira", MIRA)])
        prompt = f"{SHORT} {MIRA} {SHORT}"
        assert [f.chunk_ids for f in matcher.find(prompt)] == [("mira",)]
        named = matcher.find(prompt, [handle("short")])
        assert [f.chunk_ids for f in named] == [("short",), ("mira",), ("short",)]

    def test_handles_of_unknown_chunks_are_passed_over(self) -> None:
        assert bounds(ChunkMatcher([("fox", FOX)]).find(FOX, [handle("gone")])) == [(0, len(FOX))]

    def test_every_text_of_many_is_found_among_near_duplicates(self) -> None:
        draw = random.Random(0)
        texts = [f"{FOX[:40]}{i % 7} and then {i}" + "." * (i % 5) for i in range(100)]
        matcher = ChunkMatcher([(str(i), text) for i, text in enumerate(texts)])
        order = draw.sample(range(100), 100)
        prompt = "\n".join(texts[i] for i in order)
        found = matcher.find(prompt)
        assert [f.chunk_ids for f in found] == [(str(i),) for i in order]
        assert [prompt[a:b] for a, b in bounds(found)] == [texts[i] for i in order]


def record(name: str, document: str, index: int, text: str = FOX) -> ChunkRecord:
    encoded = EncodedChunk(Chunk(name, document, index, text), (), ())
    return ChunkRecord(encoded, f"iso-{text}", f"fused-{name}")


RECORDS = {
    r.chunk.id: r
    for r in (
        record("a1", "a", 0, "start of a"),
        record("a2", "a", 1),
        record("b1", "b", 0, "start of b"),
        record("b2", "b", 1),
    )
}


class TestResolve:
    """a1, b1 begin documents a and b; a2 and b2 have the same text."""

    def decide(
        self, *groups: tuple[str, ...], handles: tuple[str, ...] = (), gone: tuple[str, ...] = ()
    ) -> list[tuple[str, str]]:
        found = [FoundText(i, i + 1, group, True) for i, group in enumerate(groups)]
        known = {name: r for name, r in RECORDS.items() if name not in gone}
        matches = resolve(found, known, [handle(name) for name in handles])
        return [(match.record.chunk.id, match.variant) for match in matches]

    def test_the_only_chunk_with_a_text_is_fused(self) -> None:
        assert self.decide(("a1",), ("b1",)) == [("a1", "fused"), ("b1", "fused")]

    def test_a_handle_decides(self) -> None:
        assert self.decide(("a2", "b2"), handles=("b2",)) == [("b2", "fused")]

    def test_each_occurrence_takes_the_next_handle(self) -> None:
        twice = ("a2", "b2"), ("a2", "b2")
        expected = [("b2", "fused"), ("a2", "fused")]
        assert self.decide(*twice, handles=("b2", "a1", "a2")) == expected

    def test_the_chunk_before_it_decides_where_no_handle_does(self) -> None:
        assert self.decide(("b1",), ("a2", "b2")) == [("b1", "fused"), ("b2", "fused")]
        assert self.decide(("a1",), ("a2", "b2")) == [("a1", "fused"), ("a2", "fused")]

    def test_a_handle_wins_over_the_chunk_before_it(self) -> None:
        assert self.decide(("b1",), ("a2", "b2"), handles=("a2",))[1] == ("a2", "fused")

    def test_without_handle_or_predecessor_it_is_isolated(self) -> None:
        assert self.decide(("a2", "b2"))[0][1] == "isolated"
        assert self.decide(("a2", "b2"), ("a1",))[0][1] == "isolated"

    def test_an_occurrence_beyond_the_handles_is_isolated(self) -> None:
        decided = self.decide(("a2", "b2"), ("a2", "b2"), handles=("a2",))
        assert [variant for _, variant in decided] == ["fused", "isolated"]

    def test_chunks_that_are_gone_match_nothing(self) -> None:
        assert self.decide(("a1",), ("b1",), gone=("a1",)) == [("b1", "fused")]
        assert self.decide(("a2", "b2"), handles=("a2",), gone=("a2",)) == [("b2", "fused")]

    def test_bounds_are_kept(self) -> None:
        (match,) = resolve([FoundText(5, 9, ("a1",), False)], RECORDS, [])
        assert (match.start, match.stop) == (5, 9)
