"""Which chunks stand before a chunk when its KV is fused, and in which order."""

from __future__ import annotations

import pytest

from fusionrag_integrations.documents.chunk_record import ChunkRecord, EncodedChunk
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.ingest.neighbours import DEFAULT_NEIGHBOURS, Candidates, Neighbours


def record(text: str, tokens: int = 10) -> ChunkRecord:
    ids = tuple(range(tokens))
    chunk = Chunk(f"id-{text}", "d", 0, text)
    return ChunkRecord(EncodedChunk(chunk, ids, tuple((i, i + 1) for i in ids)), f"iso-{text}")


def records(names: str) -> list[ChunkRecord]:
    return [record(name) for name in names]


def chosen(
    predecessors: str,
    similar: str,
    max_tokens: int = 4_096,
    policy: Neighbours = DEFAULT_NEIGHBOURS,
) -> str:
    found = policy.choose(
        Candidates(record("x"), records(predecessors), records(similar), max_tokens)
    )
    return "".join(neighbour.chunk.text for neighbour in found)


def test_the_nearest_stands_closest_and_predecessors_last() -> None:
    assert chosen("pq", "ab") == "bapq"


def test_four_in_all_unless_others_are_wanted() -> None:
    assert chosen("pq", "abcdefghijkl") == "bapq"
    assert chosen("pq", "abcdefghijkl", policy=Neighbours(10, 2)) == "hgfedcbapq"


def test_a_text_counts_once_and_the_chunks_own_not_at_all() -> None:
    assert chosen("q", "xaqab") == "baq"
    assert chosen("qq", "") == "q"


def test_the_least_similar_go_where_tokens_run_out() -> None:
    assert chosen("pq", "abc", max_tokens=39) == "apq"
    assert chosen("pq", "abc", max_tokens=15) == "q"
    assert chosen("pq", "abc", max_tokens=9) == ""


def test_a_long_neighbour_leaves_its_room_to_a_shorter_one() -> None:
    similar = [record("long", 30), record("short", 5)]
    found = Neighbours().choose(Candidates(record("x"), records("p"), similar, max_tokens=20))
    assert [n.chunk.text for n in found] == ["short", "p"]


def test_a_chunk_alone_has_none() -> None:
    assert chosen("", "") == ""


def test_fewer_where_fewer_are_wanted() -> None:
    assert chosen("pq", "abc", policy=Neighbours(3, 2)) == "apq"
    assert chosen("", "abc", policy=Neighbours(2, 0)) == "ba"
    assert chosen("pq", "", policy=Neighbours(0, 0)) == ""


def test_no_more_candidates_are_looked_up_than_can_count() -> None:
    assert (Neighbours().similar, Neighbours().predecessors) == (6, 2)
    assert Neighbours(2, 2).similar == 0


@pytest.mark.parametrize(("count", "predecessors"), [(1, 2), (-1, 0), (3, -1)])
def test_impossible_numbers_are_refused(count: int, predecessors: int) -> None:
    with pytest.raises(InvalidInputError, match="predecessors"):
        Neighbours(count, predecessors)
