"""What `store/vector_index/base.py` promises, of every implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import chromadb
import numpy as np
import pytest

from fusionrag_integrations.documents.types import Chunk, MetadataValue
from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreClosedError,
    StoreMismatchError,
)
from fusionrag_integrations.store.vector_index.base import VectorIndex
from fusionrag_integrations.store.vector_index.chroma import ChromaIndex
from fusionrag_integrations.store.vector_index.given import IndexElsewhere
from tests.store.among_others import IndexOfOthers
from tests.store.memory import MemoryVectorIndex

pytestmark = pytest.mark.contract


def chunk(name: str, scope: str = "", /, **metadata: MetadataValue) -> Chunk:
    return Chunk(name, f"doc-{name}", 0, f"text of {name}", f"Title {name}", scope, metadata)


def of_client(path: Path) -> VectorIndex:
    """In a collection of the store's own."""
    return IndexElsewhere.of(chromadb.EphemeralClient(), path, uuid4().hex).index


def among_others(path: Path, space: str = "cosine") -> VectorIndex:
    """In a collection where another store and another program have entries, nearest to all."""
    client, name = chromadb.EphemeralClient(), uuid4().hex
    collection = client.create_collection(name, configuration={"hnsw": {"space": space}})
    other = IndexElsewhere.of(collection, path, uuid4().hex).index
    return IndexOfOthers(IndexElsewhere.of(collection, path, uuid4().hex).index, other, collection)


MADE: dict[str, Callable[[Path], VectorIndex]] = {
    "chroma": lambda path: ChromaIndex(path / "index"),
    "client": of_client,
    "collection": among_others,
    "collection by l2": lambda path: among_others(path, "l2"),
    "collection by ip": lambda path: among_others(path, "ip"),
    "memory": lambda path: MemoryVectorIndex(),
}


@pytest.fixture(params=MADE)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorIndex]:
    with closing(MADE[request.param](tmp_path)) as made:
        yield made


@pytest.fixture(scope="module")
def crowd() -> tuple[list[Chunk], np.ndarray]:
    """300 chunks in two scopes, every third in "b", as random vectors of 24 dimensions."""
    vectors = np.random.default_rng(0).standard_normal((300, 24)).astype(np.float32)
    return [chunk(f"c{i:03}", "b" if i % 3 == 0 else "a") for i in range(300)], vectors


def exact(
    chunks: list[Chunk], vectors: np.ndarray, query: np.ndarray, k: int, scope: str | None
) -> list[tuple[str, float]]:
    scores = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    hits = [
        (c.id, float(s))
        for c, s in zip(chunks, scores, strict=True)
        if scope is None or c.scope == scope
    ]
    return sorted(hits, key=lambda hit: -hit[1])[:k]


@pytest.mark.parametrize("scope", [None, "a", "b"])
def test_search_equals_brute_force(
    index: VectorIndex, crowd: tuple[list[Chunk], np.ndarray], scope: str | None
) -> None:
    chunks, vectors = crowd
    index.add(chunks, vectors.tolist())
    for query in np.random.default_rng(1).standard_normal((10, 24)):
        found = index.search(query.tolist(), 7, None if scope is None else [scope])
        expected = exact(chunks, vectors, query, 7, scope)
        assert [i for i, _ in found] == [i for i, _ in expected]
        assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=1e-5)


def test_many_are_searched_for_as_one_is(
    index: VectorIndex, crowd: tuple[list[Chunk], np.ndarray]
) -> None:
    chunks, vectors = crowd
    assert index.search_many([[1.0] * 24] * 2, 3) == [[], []]
    index.add(chunks, vectors.tolist())
    for scopes in (None, ["a"], ["a", "b"], []):
        found = index.search_many(vectors.tolist(), 4, scopes)
        assert found == [index.search(vector.tolist(), 4, scopes) for vector in vectors]
    assert index.search_many([], 3) == []


def test_equal_scores_come_in_order_of_ids(index: VectorIndex) -> None:
    index.add([chunk(n) for n in ["z", "m", "a", "best"]], [[1.0, 1.0]] * 3 + [[1.0, 0.0]])
    assert [i for i, _ in index.search([1.0, 0.0], 4)] == ["best", "a", "m", "z"]
    assert [i for i, _ in index.search([1.0, 0.0], 2)] == ["best", "a"]
    assert index.search([1.0, 0.0], 1)[0][1] == pytest.approx(1.0)
    assert index.search([-1.0, 0.0], 4)[-1] == ("best", pytest.approx(-1.0))


def test_scores_do_not_depend_on_the_lengths_of_vectors(index: VectorIndex) -> None:
    index.add([chunk("a"), chunk("b")], [[3e20, 0.0], [0.0, 1e-20]])
    found = dict(index.search([30.0, 40.0], 3))
    assert found == {"a": pytest.approx(0.6), "b": pytest.approx(0.8)}
    found = dict(index.search([0.0, 0.0], 3))
    assert found == {"a": pytest.approx(0.0), "b": pytest.approx(0.0)}


def test_zeros_are_similar_to_nothing_or_refused(index: VectorIndex) -> None:
    refused = False
    with suppress(InvalidInputError):
        refused = True
        index.add([chunk("zeros"), chunk("a")], [[0.0, 0.0], [1.0, 0.0]])
        refused = False
    found = dict(index.search([0.6, 0.8], 3))
    assert found == ({} if refused else {"a": pytest.approx(0.6), "zeros": pytest.approx(0.0)})


def test_which_of_these_and_whether_so_many(index: VectorIndex) -> None:
    assert index.ids(["a"]) == index.ids([]) == set()
    assert index.holds(0)
    assert not index.holds(1)
    index.add([chunk("a"), chunk("b"), chunk("c")], [[1.0, 0.0]] * 3)
    assert index.ids(["c", "unknown", "a"]) == {"a", "c"}
    assert index.holds(3)
    assert not index.holds(4)
    index.remove(["b"])
    assert not index.holds(3)


def test_empty_index_and_more_asked_than_there_is(index: VectorIndex) -> None:
    assert index.ids() == set()
    assert index.search([1.0, 0.0], 3) == []
    assert index.search([1.0, 0.0], 3, where={"page": 1}) == []
    assert index.matching({"page": 1}) == set()
    index.add([], [])
    index.remove([])
    index.add([chunk("a"), chunk("b", "s")], [[1.0, 0.0], [0.0, 1.0]])
    assert [i for i, _ in index.search([1.0, 0.1], 99)] == ["a", "b"]
    assert [i for i, _ in index.search([1.0, 0.1], 99, ["s"])] == ["b"]
    assert [i for i, _ in index.search([1.0, 0.1], 99, [""])] == ["a"]
    assert [i for i, _ in index.search([1.0, 0.1], 99, ["s", "", "unknown"])] == ["a", "b"]
    assert index.search([1.0, 0.1], 99, ["unknown"]) == []
    assert index.search([1.0, 0.1], 99, []) == []
    assert len(index.search([1.0, 0.1], 1 << 40)) == 2


def test_add_replaces_and_remove_passes_over_unknown_ids(index: VectorIndex) -> None:
    index.add([chunk("a", page=1), chunk("b", page=1)], [[1.0, 0.0], [0.0, 1.0]])
    index.add([chunk("a", "moved", page=2)], [[0.0, -1.0]])
    assert index.ids() == {"a", "b"}
    assert index.search([0.0, -1.0], 1, ["moved"]) == [("a", pytest.approx(1.0))]
    assert index.search([0.0, -1.0], 1, [""]) == [("b", pytest.approx(-1.0))]
    assert index.matching({"page": 1}) == {"b"}
    index.remove(["b", "never there"])
    assert index.ids() == {"a"}
    index.remove(iter(["a"]))
    assert index.search([1.0, 0.0], 3) == []
    assert index.matching({"page": 2}) == set()


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"page": 2}, "b"),
    ({"page": {"$eq": 2}}, "b"),
    ({"page": {"$ne": 2}}, "acde"),
    ({"page": {"$gt": 2}}, "c"),
    ({"page": {"$gte": 2}}, "bc"),
    ({"page": {"$lt": 3.0}}, "ab"),
    ({"page": {"$lte": 2}}, "ab"),
    ({"page": {"$in": [1, 2, 9]}}, "ab"),
    ({"page": {"$nin": [1, 2]}}, "cde"),
    ({"kind": {"$in": ["news"]}}, "ad"),
    ({"draft": True}, "e"),
    ({"draft": 1}, ""),
    ({"page": True}, ""),
    ({"kind": "news", "page": 1}, "a"),
    ({"$and": [{"kind": "news"}, {"page": {"$gt": 1}}]}, ""),
    ({"$or": [{"kind": "news"}, {"page": {"$gt": 2}}]}, "acd"),
    ({"$or": [{"page": 1}, {"$and": [{"kind": "book"}, {"page": {"$lt": 3}}]}]}, "ab"),
    ({"$or": [{"page": 1}, {"page": 2}], "kind": "book"}, "b"),
    ({"$and": [{"page": 1}]}, "a"),
    ({"title": "Title c"}, "c"),
    ({"document_id": {"$in": ["doc-a", "doc-e"]}}, "ae"),
    ({"unknown": 1}, ""),
    ({"scope": "inside"}, "e"),
]


@pytest.mark.parametrize(("where", "expected"), FILTERS, ids=str)
def test_filters(index: VectorIndex, where: dict[str, Any], expected: str) -> None:
    chunks = [
        chunk("a", page=1, kind="news"),
        chunk("b", page=2, kind="book"),
        chunk("c", "inside", page=3.5, kind="book"),
        chunk("d", kind="news", page="one"),
        chunk("e", draft=True, scope="inside"),  # the metadata hide no scope
    ]
    index.add(chunks, [[1.0, i / 10] for i in range(5)])
    assert "".join(sorted(index.matching(where))) == expected
    assert "".join(i for i, _ in index.search([1.0, 0.0], 9, where=where)) == expected
    inside = "c" if "c" in expected else ""
    assert "".join(i for i, _ in index.search([1.0, 0.0], 9, ["inside"], where)) == inside


@pytest.mark.parametrize(
    "where",
    [{"page": {"$near": 1}}, {"page": None}, {"$or": [{"page": {"$near": 1}}, {"page": 1}]}],
    ids=str,
)
def test_filters_that_cannot_be_used_are_refused(index: VectorIndex, where: dict[str, Any]) -> None:
    for _ in range(2):  # whether or not there are chunks
        with pytest.raises(InvalidInputError, match="The filter"):
            index.search([1.0, 0.0], 1, where=where)
        with pytest.raises(InvalidInputError, match="The filter"):
            index.matching(where)
        index.add([chunk("a", page=1)], [[1.0, 0.0]])


def test_another_length_of_vector_is_a_mismatch(index: VectorIndex) -> None:
    with pytest.raises(StoreMismatchError):
        index.add([chunk("a"), chunk("b")], [[1.0, 0.0], [1.0, 0.0, 0.0]])
    assert index.ids() == set()
    index.add([chunk("a")], [[1.0, 0.0]])
    with pytest.raises(StoreMismatchError, match=r"dimension of 2, got 3"):
        index.search([1.0, 0.0, 0.0], 1)
    with pytest.raises(StoreMismatchError, match=r"dimension of 2, got 3"):
        index.add([chunk("b")], [[1.0, 0.0, 0.0]])
    assert index.ids() == {"a"}


def test_bad_arguments_are_refused(index: VectorIndex) -> None:
    index.add([chunk("a")], [[1.0, 0.0]])
    for k in (0, -1):
        with pytest.raises(InvalidInputError, match=f"k is {k}"):
            index.search([1.0, 0.0], k)
    with pytest.raises(InvalidInputError):
        index.add([chunk("b"), chunk("c")], [[1.0, 0.0]])
    with pytest.raises(InvalidInputError):
        index.add([chunk("b")], [])
    with pytest.raises(InvalidInputError):
        index.add([chunk("b"), chunk("b")], [[1.0, 0.0]] * 2)
    assert index.ids() == {"a"}


def test_several_threads_add_search_and_remove(index: VectorIndex) -> None:
    def work(number: int) -> bool:
        name = f"c{number}"
        vector = np.eye(8)[number].tolist()
        index.add([chunk(name)], [vector])
        found = index.search(vector, 1) == [(name, pytest.approx(1.0))]
        if number % 2:
            index.remove([name])
        return found

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
    assert index.ids() == {"c0", "c2", "c4", "c6"}


def test_a_refreshed_index_has_what_it_had(index: VectorIndex) -> None:
    index.add([chunk("a", page=1)], [[1.0, 0.0]])
    index.refresh()
    assert index.search([1.0, 0.0], 1, where={"page": 1}) == [("a", pytest.approx(1.0))]


def test_a_closed_index_says_so(index: VectorIndex) -> None:
    index.add([chunk("a")], [[1.0, 0.0]])
    index.close()
    index.close()
    calls: list[Callable[[], object]] = [
        index.ids,
        lambda: index.holds(1),
        lambda: index.add([chunk("b")], [[1.0, 0.0]]),
        lambda: index.add([], []),
        lambda: index.remove(["a"]),
        lambda: index.remove([]),
        lambda: index.search([1.0, 0.0], 1),
        lambda: index.search([1.0, 0.0], 1, []),
        lambda: index.matching({"page": 1}),
        index.refresh,
    ]
    for call in calls:
        with pytest.raises(StoreClosedError):
            call()
