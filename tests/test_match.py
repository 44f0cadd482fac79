"""Finding known texts in a prompt, and deciding which chunk each of them is."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionrag_integrations.documents.chunk_record import ChunkRecord, EncodedChunk
from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.prompt import fingerprints
from fusionrag_integrations.prompt.found import MIN_PREFIX, FoundText
from fusionrag_integrations.prompt.match import ANCHOR, MAX_CANDIDATES, ChunkMatcher
from fusionrag_integrations.prompt.resolve import resolve

MIRA = "Mira founded the company in the small town by the sea, and it makes brass lamps."
FOX = "The quick brown fox jumps over the lazy dog near the old bank of the river Oder."
SHORT = "It makes lamps."
BARE = FOX.replace(" ", "_")


def handle(chunk_id: str) -> KVHandle:
    return KVHandle(chunk_id, "00")


def bounds(found: list[FoundText]) -> list[tuple[int, int]]:
    return [(text.start, text.stop) for text in found]


def ids(found: list[FoundText]) -> list[tuple[str, ...]]:
    return [tuple(record.chunk.id for record in text.records) for text in found]


class Known:
    """Chunks of one document, and what was read of them."""

    def __init__(
        self, texts: Sequence[tuple[str, str]], scopes: Mapping[str, str] | None = None
    ) -> None:
        self.chunks = {
            name: Chunk(name, "d", i, text, scope=(scopes or {}).get(name, ""))
            for i, (name, text) in enumerate(texts)
        }
        self.texts_read: list[str] = []
        self.records_read: list[str] = []
        self.matcher = self.refreshed()

    def refreshed(self, last: ChunkMatcher | None = None) -> ChunkMatcher:
        return ChunkMatcher(list(self.chunks), self.read_texts, last)

    def read_texts(self, chunk_ids: Sequence[str]) -> list[tuple[str, str, str]]:
        self.texts_read += chunk_ids
        chunks = [self.chunks[i] for i in chunk_ids if i in self.chunks]
        return [(chunk.id, chunk.scope, chunk.text) for chunk in chunks]

    def read_records(self, chunk_ids: Sequence[str]) -> dict[str, ChunkRecord]:
        self.records_read += chunk_ids
        return {
            i: ChunkRecord(EncodedChunk(self.chunks[i], (), ()), "00")
            for i in chunk_ids
            if i in self.chunks
        }

    def find(
        self, prompt: str, handles: Sequence[KVHandle] = (), scopes: Sequence[str] | None = None
    ) -> list[FoundText]:
        return self.matcher.find(prompt, self.read_records, handles, scopes)


class TestFind:
    def test_known_texts_are_found_where_they_stand(self) -> None:
        known = Known([("fox", FOX), ("mira", MIRA)])
        prompt = f"Context: {MIRA}\n\n{FOX} Question: who?"
        found = known.find(prompt)
        assert ids(found) == [("mira",), ("fox",)]
        assert all(text.complete for text in found)
        assert [prompt[a:b] for a, b in bounds(found)] == [MIRA, FOX]

    def test_what_is_not_known_is_not_found(self) -> None:
        assert Known([("fox", FOX)]).find(f"Context: {MIRA}") == []
        assert Known([]).find(FOX) == []

    def test_each_occurrence_is_found(self) -> None:
        found = Known([("fox", FOX)]).find(FOX + FOX)
        assert bounds(found) == [(0, len(FOX)), (len(FOX), 2 * len(FOX))]

    def test_all_chunks_with_the_text_are_named(self) -> None:
        known = Known([("one", FOX), ("two", FOX), ("mira", MIRA)])
        assert ids(known.find(FOX)) == [("one", "two")]

    def test_the_longest_text_at_one_place_wins(self) -> None:
        known = Known([("fox", FOX), ("both", f"{FOX} {MIRA}"), ("mira", MIRA)])
        assert ids(known.find(f"{FOX} {MIRA}")) == [("both",)]

    def test_a_whole_text_wins_over_a_longer_cut_one(self) -> None:
        known = Known([("fox", FOX), ("both", f"{FOX} {MIRA}")])
        found = known.find(f"{FOX} Mira founded something else")
        assert ids(found) == [("fox",)]
        assert found[0].complete

    def test_texts_that_overlap_are_found_from_the_left(self) -> None:
        middle = f"{FOX[40:]} {MIRA[:40]}"
        known = Known([("fox", FOX), ("middle", middle), ("mira", MIRA)])
        assert ids(known.find(f"{FOX} {MIRA}")) == [("fox",), ("mira",)]

    def test_a_cut_text_is_found_as_far_as_it_goes(self) -> None:
        found = Known([("fox", FOX)]).find(f"x {FOX[:70]}... and so on")
        assert (ids(found), bounds(found)) == ([("fox",)], [(2, 72)])
        assert not found[0].complete

    @pytest.mark.parametrize(("length", "count"), [(MIN_PREFIX - 1, 0), (MIN_PREFIX, 1)])
    def test_a_short_beginning_is_not_enough(self, length: int, count: int) -> None:
        assert len(Known([("fox", FOX)]).find(f"{FOX[:length]}...")) == count

    def test_the_end_of_a_text_alone_is_not_found(self) -> None:
        assert Known([("fox", FOX)]).find(FOX[5:]) == []

    def test_a_beginning_that_fails_hides_nothing_behind_it(self) -> None:
        start = f"{FOX[:ANCHOR]} {MIRA}"
        known = Known([("fox", FOX), ("mira", MIRA)])
        assert ids(known.find(start)) == [("mira",)]

    def test_of_two_cut_texts_the_one_that_goes_further_is_found(self) -> None:
        known = Known([("a", FOX[:66] + "a" * 40), ("b", FOX[:70] + "b" * 20)])
        found = known.find(FOX)
        assert (ids(found), bounds(found)) == ([("b",)], [(0, 70)])

    def test_short_texts_need_a_handle(self) -> None:
        known = Known([("short", SHORT), ("mira", MIRA)])
        prompt = f"{SHORT} {MIRA} {SHORT}"
        assert ids(known.find(prompt)) == [("mira",)]
        named = known.find(prompt, [handle("short")])
        assert ids(named) == [("short",), ("mira",), ("short",)]

    def test_handles_of_unknown_chunks_are_passed_over(self) -> None:
        assert bounds(Known([("fox", FOX)]).find(FOX, [handle("gone")])) == [(0, len(FOX))]

    def test_every_text_of_many_is_found_among_near_duplicates(self) -> None:
        draw = random.Random(0)
        texts = [f"{FOX[:40]}{i % 7} and then {i}" + "." * (i % 5) for i in range(100)]
        known = Known([(str(i), text) for i, text in enumerate(texts)])
        order = draw.sample(range(100), 100)
        prompt = "\n".join(texts[i] for i in order)
        found = known.find(prompt)
        assert ids(found) == [(str(i),) for i in order]
        assert [prompt[a:b] for a, b in bounds(found)] == [texts[i] for i in order]

    def test_a_short_named_text_wins_over_a_cut_one_but_not_over_a_whole_one(self) -> None:
        known = Known([("short", FOX[:19]), ("fox", FOX)])
        named = [handle("short")]
        assert ids(known.find(FOX, named)) == [("fox",)]
        assert ids(known.find(FOX[:-1], named)) == [("short",)]

    @pytest.mark.parametrize("length", [ANCHOR - 1, ANCHOR, ANCHOR + 1, MIN_PREFIX - 1, MIN_PREFIX])
    def test_texts_of_every_length_from_the_anchors_on_are_found(self, length: int) -> None:
        known = Known([("text", BARE[:length]), ("other", MIRA)])
        for prompt in (BARE, BARE[:length], f"x{BARE}", f"x{BARE[:length]}"):
            found = known.find(prompt)
            assert ids(found) == ([("text",)] if length >= ANCHOR else [])

    @pytest.mark.parametrize(
        "text", ["\0" * 70, "🙂" * 70, "\ud800" * 70, "-" * 70, "a\u0301" * 40]
    )
    def test_any_characters_are_found(self, text: str) -> None:
        known = Known([("text", text), ("fox", FOX)])
        found = known.find(f"{FOX}|{text}|{text[:-1]}|")
        stops = [len(FOX), len(FOX) + 1 + len(text), len(FOX) + 1 + 2 * len(text)]
        assert [text.stop for text in found] == stops
        assert [text.complete for text in found] == [True, True, False]

    def test_a_gone_chunk_is_not_found(self) -> None:
        known = Known([("one", FOX), ("two", FOX), ("mira", MIRA), ("short", SHORT)])
        del known.chunks["one"], known.chunks["mira"], known.chunks["short"]
        assert ids(known.find(f"{MIRA} {FOX} {MIRA[:70]}", [handle("short")])) == [("two",)]

    def test_only_chunks_of_the_scopes_are_found(self) -> None:
        texts = [("a", FOX), ("b", FOX), ("long", f"{FOX} {MIRA}"), ("short", SHORT)]
        known = Known(texts, {"a": "x", "b": "y", "long": "z", "short": "z"})
        prompt, named = f"{FOX} {MIRA} {SHORT}", [handle("short")]
        assert ids(known.find(prompt, named, ["x", "unknown"])) == [("a",)]
        assert ids(known.find(prompt, named, ["x", "y"])) == [("a", "b")]
        assert ids(known.find(prompt, named, ["z"])) == [("long",), ("short",)]
        assert known.find(prompt, named, []) == []
        assert ids(known.find(prompt, named)) == [("long",), ("short",)]


def loose(text: str) -> str:
    """Texts of few letters: they hold one another, and begin alike."""
    return text.replace("0", "ab" * 20).replace("1", "ab" * 35 + "c").replace("2", "abc" * 15)


@given(
    st.lists(st.text("012", min_size=1, max_size=4).map(loose), max_size=12),
    st.text("012xab", max_size=12).map(loose),
)
def test_what_is_found_is_what_looking_everywhere_finds(texts: list[str], prompt: str) -> None:
    expected, start = [], 0
    while start < len(prompt):
        whole = [len(text) for text in texts if prompt.startswith(text, start)]
        begun = [len(common(prompt[start:], text)) for text in texts]
        cut = [length for length in begun if length >= MIN_PREFIX]
        length = max(whole) if whole else max(cut, default=0)
        if length:
            expected.append((start, start + length))
        start += length or 1
    known = Known([(str(i), text) for i, text in enumerate(texts)])
    found = known.find(prompt)
    assert bounds(found) == expected
    for text in found:
        assert {record.chunk.id for record in text.records} == {
            name for name, c in known.chunks.items() if c.text == text.records[0].chunk.text
        }


def common(one: str, other: str) -> str:
    count = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return min(one, other, key=len)[:count]


class TestCollisions:
    """Under base 1 a fingerprint is the sum of the characters: anagrams have the same one."""

    @pytest.fixture(autouse=True)
    def weak_fingerprints(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fingerprints, "_BASE", 1)

    def test_a_text_with_the_same_fingerprints_is_not_taken_for_another(self) -> None:
        for text in (BARE, BARE[:40]):
            known = Known([("reversed", text[::-1]), ("mira", MIRA)])
            assert ids(known.find(f"{text}\n{MIRA}")) == [("mira",)]

    def test_a_named_one_is_not_either(self) -> None:
        known = Known([("long", FOX[::-1]), ("short", SHORT)])
        handles = [handle("long"), handle("short")]
        assert ids(known.find(f"{FOX} {SHORT[::-1]} {SHORT}", handles)) == [("short",)]

    def test_a_cut_text_is_as_long_as_it_really_is(self) -> None:
        known = Known([("fox", FOX)])
        swapped = f"{FOX[:70]}{FOX[70:][::-1]}"
        assert bounds(known.find(swapped)) == [(0, len(common(FOX, swapped)))]


class TestVeryManyAlike:
    """Ten thousand chunks with a page header that is longer than any anchor."""

    HEADER = " ".join(f"Section {i} of the annual report is confidential." for i in range(6))
    COUNT = 10_000

    @pytest.fixture(scope="class")
    def pages(self) -> Known:
        return Known([(str(i), f"{self.HEADER} Page {i}. {FOX}") for i in range(self.COUNT)])

    @pytest.fixture(scope="class")
    def copies(self) -> Known:
        """Every document, of two chunks, begins with its own text and ends with the same one."""
        texts = [(str(i), FOX if i % 2 else f"{i} {MIRA}") for i in range(self.COUNT)]
        return Known(texts)

    @pytest.fixture(autouse=True)
    def nothing_read(self, pages: Known, copies: Known) -> None:
        pages.records_read.clear()
        copies.records_read.clear()

    def test_each_is_found_by_reading_its_own_record(self, pages: Known) -> None:
        names = [str(i * 97) for i in range(100)]
        found = pages.find("\n\n".join(pages.chunks[name].text for name in names))
        assert ids(found) == [(name,) for name in names]
        assert sorted(pages.records_read) == sorted(names)

    def test_a_cut_one_is_found_at_least_as_far_as_all_are_alike(self, pages: Known) -> None:
        (found,) = pages.find(pages.chunks["7000"].text[:-20])
        assert found.stop >= len(f"{self.HEADER} Page ")
        assert len(pages.records_read) <= 2 * MAX_CANDIDATES

    def test_a_cut_one_with_a_handle_is_found_to_its_end(self, pages: Known) -> None:
        text = pages.chunks["7000"].text[:-20]
        assert ids(pages.find(text, [handle("7000")])) == [("7000",)]
        assert bounds(pages.find(text, [handle("7000")])) == [(0, len(text))]

    def test_a_text_that_very_many_have_is_still_ambiguous(self, copies: Known) -> None:
        (found,) = copies.find(FOX)
        assert len(found.records) > 1
        assert len(copies.records_read) <= 2 * MAX_CANDIDATES

    def test_a_document_of_copies_is_not_read_through(self) -> None:
        known = Known([(str(i), FOX) for i in range(1000)])
        assert len(known.find("\n".join([FOX] * 20))) == 20
        assert len(known.records_read) <= 20 * 2 * MAX_CANDIDATES

    def test_of_very_many_the_named_and_the_next_are_read(self, copies: Known) -> None:
        _, found = copies.find(f"{copies.chunks['5000'].text}\n{FOX}", [handle("7001")])
        assert {"5001", "7001"} <= {record.chunk.id for record in found.records}
        assert len(copies.records_read) <= 2 * MAX_CANDIDATES + 3


class TestRefresh:
    def test_only_new_texts_are_read(self) -> None:
        known = Known([("fox", FOX), ("mira", MIRA)])
        assert known.texts_read == ["fox", "mira"]
        known.chunks["new"] = Chunk("new", "e", 0, FOX.upper(), scope="s")
        known.chunks["fox"] = known.chunks.pop("fox")
        known.matcher = known.refreshed(known.matcher)
        assert known.texts_read == ["fox", "mira", "new"]
        assert ids(known.find(f"{FOX} {MIRA} {FOX.upper()}")) == [("fox",), ("mira",), ("new",)]
        assert ids(known.find(f"{FOX} {MIRA} {FOX.upper()}", scopes=["s"])) == [("new",)]

    def test_what_went_is_not_looked_for_any_more(self) -> None:
        known = Known([("fox", FOX), ("mira", MIRA)])
        del known.chunks["fox"]
        known.matcher = known.refreshed(known.matcher)
        known.find(f"{FOX} {MIRA}")
        assert known.records_read == ["mira"]

    def test_a_text_that_was_gone_when_it_was_read_is_read_again(self) -> None:
        known = Known([("mira", MIRA)])
        early = ChunkMatcher(["fox", "mira"], known.read_texts, known.matcher)
        known.chunks["fox"] = Chunk("fox", "d", 0, FOX)
        known.matcher = known.refreshed(early)
        assert ids(known.find(f"{FOX} {MIRA}")) == [("fox",), ("mira",)]

    def test_a_matcher_holds_little_of_long_texts(self) -> None:
        matcher = Known([(str(i), f"{i} " + FOX * 1000) for i in range(100)]).matcher
        size = sum(
            value.nbytes if hasattr(value, "nbytes") else sys.getsizeof(value)
            for value in vars(matcher).values()
        )
        assert size < 100 * 1000


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
        self, *groups: tuple[str, ...], handles: tuple[str, ...] = ()
    ) -> list[tuple[str, str]]:
        found = [
            FoundText(i, i + 1, tuple(RECORDS[name] for name in group), True)
            for i, group in enumerate(groups)
        ]
        matches = resolve(found, [handle(name) for name in handles])
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

    def test_a_handle_to_a_chunk_that_was_not_found_is_passed_over(self) -> None:
        assert self.decide(("b2",), handles=("a2",)) == [("b2", "fused")]
        assert self.decide(("b2",), handles=("gone", "b2")) == [("b2", "fused")]

    def test_bounds_are_kept(self) -> None:
        (match,) = resolve([FoundText(5, 9, (RECORDS["a1"],), False)], [])
        assert (match.start, match.stop) == (5, 9)
