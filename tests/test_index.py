from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import numpy as np
import pytest

from fusionrag_integrations.errors import InvalidInputError, StoreError, StoreMismatchError
from fusionrag_integrations.index import ChunkIndex
from fusionrag_integrations.types import Chunk


def chunk(name: str, scope: str = "", metadata: dict[str, str | int | bool] | None = None) -> Chunk:
    return Chunk(name, f"doc-{name}", 0, f"text of {name}", f"Title {name}", scope, metadata or {})


@pytest.fixture
def index(tmp_path: Path) -> Iterator[ChunkIndex]:
    index = ChunkIndex(tmp_path / "index")
    yield index
    index.close()


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
    index: ChunkIndex, crowd: tuple[list[Chunk], np.ndarray], scope: str | None
) -> None:
    chunks, vectors = crowd
    index.add(chunks, vectors.tolist())
    for query in np.random.default_rng(1).standard_normal((10, 24)):
        found = index.search(query.tolist(), 7, None if scope is None else [scope])
        expected = exact(chunks, vectors, query, 7, scope)
        assert [i for i, _ in found] == [i for i, _ in expected]
        assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=1e-5)


def test_neighbours_equal_brute_force_within_the_scope(
    index: ChunkIndex, crowd: tuple[list[Chunk], np.ndarray]
) -> None:
    chunks, vectors = crowd
    index.add(chunks, vectors.tolist())
    found = index.neighbours_many([c.id for c in chunks], 5)
    assert found.keys() == {c.id for c in chunks}
    for c, vector in zip(chunks, vectors, strict=True):
        expected = [i for i, _ in exact(chunks, vectors, vector, 6, c.scope) if i != c.id]
        assert found[c.id] == expected


def test_neighbours_of_equal_vectors_leave_out_only_the_chunk_itself(index: ChunkIndex) -> None:
    names = ["n1", "n2", "n3", "n4", "n5"]
    index.add([chunk(n) for n in names], [[1.0, 0.0]] * 5)
    index.add([chunk("other", "elsewhere")], [[1.0, 0.0]])
    found = index.neighbours_many(["n2", "other", "n2"], 2)
    assert found["other"] == []
    assert len(found["n2"]) == 2
    assert set(found["n2"]) < {"n1", "n3", "n4", "n5"}
    assert index.neighbours_many(["n3"], 50)["n3"] == ["n1", "n2", "n4", "n5"]


def test_equal_scores_come_in_order_of_ids(index: ChunkIndex) -> None:
    index.add([chunk(n) for n in ["z", "m", "a", "best"]], [[1.0, 1.0]] * 3 + [[1.0, 0.0]])
    assert [i for i, _ in index.search([1.0, 0.0], 4)] == ["best", "a", "m", "z"]
    assert index.search([1.0, 0.0], 1)[0][1] == pytest.approx(1.0)
    assert index.search([-1.0, 0.0], 4)[-1] == ("best", pytest.approx(-1.0))


def test_empty_index_and_more_asked_than_there_is(index: ChunkIndex) -> None:
    assert len(index) == 0
    assert index.ids() == set()
    assert index.search([1.0, 0.0], 3) == []
    assert index.neighbours_many([], 3) == {}
    index.add([], [])
    index.remove([])
    index.add([chunk("a"), chunk("b", "s")], [[1.0, 0.0], [0.0, 1.0]])
    assert [i for i, _ in index.search([1.0, 0.1], 99)] == ["a", "b"]
    assert [i for i, _ in index.search([1.0, 0.1], 99, ["s"])] == ["b"]
    assert [i for i, _ in index.search([1.0, 0.1], 99, [""])] == ["a"]
    assert index.search([1.0, 0.1], 99, ["unknown"]) == []
    assert index.search([1.0, 0.1], 99, []) == []


def test_add_replaces_and_remove_passes_over_strangers(index: ChunkIndex) -> None:
    index.add([chunk("a"), chunk("b")], [[1.0, 0.0], [0.0, 1.0]])
    index.add([chunk("a", "moved")], [[0.0, -1.0]])
    assert len(index) == 2
    assert index.search([0.0, -1.0], 1, ["moved"]) == [("a", pytest.approx(1.0))]
    index.remove(["b", "never there"])
    assert index.ids() == {"a"}
    index.remove(["a"])
    assert index.search([1.0, 0.0], 3) == []


def test_reopening_finds_what_was_there(tmp_path: Path) -> None:
    first = ChunkIndex(tmp_path)
    first.add([chunk("a", "s")], [[3.0, 4.0]])
    first.close()
    again = ChunkIndex(tmp_path)
    assert again.search([3.0, 4.0], 2) == [("a", pytest.approx(1.0))]
    assert again.neighbours_many(["a"], 2) == {"a": []}
    again.close()


def test_a_directory_made_anew_is_empty(tmp_path: Path) -> None:
    first = ChunkIndex(tmp_path / "x")
    first.add([chunk("a")], [[1.0]])
    first.close()
    shutil.rmtree(tmp_path / "x")
    again = ChunkIndex(tmp_path / "x")
    assert len(again) == 0
    again.close()


@pytest.mark.parametrize("spread", [0.01, 100.0], ids=["similar", "diverse"])
def test_the_first_removal_after_many_additions_costs_what_it_removes(
    index: ChunkIndex, spread: float
) -> None:
    """Chroma would add once more what it keeps in no file yet, which takes far longer."""
    vectors = 1.0 + spread * np.random.default_rng(3).standard_normal((900, 128))
    chunks = [chunk(f"c{i:03}") for i in range(900)]
    started = perf_counter()
    for first in range(0, 900, 60):
        index.add(chunks[first : first + 60], vectors[first : first + 60].tolist())
    added = perf_counter() - started
    assert index.search(vectors[700].tolist(), 1)[0][0] == "c700"
    started = perf_counter()
    index.remove(["c700"])
    assert perf_counter() - started < added / 2
    assert index.search(vectors[701].tolist(), 1)[0][0] == "c701"


def test_more_than_one_batch(index: ChunkIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index._client, "get_max_batch_size", lambda: 4)
    chunks = [chunk(f"c{i}") for i in range(11)]
    index.add(chunks, np.eye(11).tolist())
    assert [i for i, _ in index.search(np.eye(11)[9].tolist(), 1)] == ["c9"]
    index.remove([c.id for c in chunks[:9]])
    assert index.ids() == {"c9", "c10"}


def test_text_and_metadata_are_kept_and_user_keys_cannot_hide_ours(index: ChunkIndex) -> None:
    index.add([chunk("a", "s", {"year": 1911, "scope": "public", "ok": True})], [[1.0, 0.0]])
    stored = index._collection.get(include=["documents", "metadatas"])
    assert stored["documents"] == ["text of a"]
    assert stored["metadatas"] == [
        {
            "scope": "s",
            "metadata_document_id": "doc-a",
            "metadata_title": "Title a",
            "metadata_year": 1911,
            "metadata_scope": "public",
            "metadata_ok": True,
        }
    ]
    assert index.search([1.0, 0.0], 1, ["public"]) == []
    assert index.search([1.0, 0.0], 1, where={"scope": "s"}) == []
    assert index.search([1.0, 0.0], 1, ["s"], {"scope": "public"}) != []


def test_more_results_than_there_can_be(index: ChunkIndex) -> None:
    index.add([chunk("a")], [[1.0, 0.0]])
    assert len(index.search([1.0, 0.0], 1 << 40)) == 1


def test_another_length_of_vector_is_a_mismatch(index: ChunkIndex, tmp_path: Path) -> None:
    index.add([chunk("a")], [[1.0, 0.0]])
    with pytest.raises(StoreMismatchError, match=r"dimension of 2, got 3") as caught:
        index.search([1.0, 0.0, 0.0], 1)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(StoreMismatchError, match=r"dimension of 2, got 3"):
        index.add([chunk("b")], [[1.0, 0.0, 0.0]])
    assert index.ids() == {"a"}


def test_bad_arguments_are_refused(index: ChunkIndex) -> None:
    index.add([chunk("a")], [[1.0, 0.0]])
    for k in (0, -1):
        with pytest.raises(InvalidInputError, match=f"k is {k}"):
            index.search([1.0, 0.0], k)
        with pytest.raises(InvalidInputError, match=f"k is {k}"):
            index.neighbours_many(["a"], k)
    with pytest.raises(InvalidInputError, match="2 chunks were given with 1 embeddings"):
        index.add([chunk("b"), chunk("c")], [[1.0, 0.0]])
    with pytest.raises(InvalidInputError, match="twice"):
        index.add([chunk("b"), chunk("b")], [[1.0, 0.0]] * 2)
    with pytest.raises(InvalidInputError, match="NaN"):
        index.add([chunk("b")], [[float("nan"), 0.0]])
    with pytest.raises(StoreError, match=r"'gone'.*1 missing"):
        index.neighbours_many(["a", "gone"], 1)
    assert index.ids() == {"a"}


def test_a_directory_that_is_a_file_or_damaged_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match="file"):
        ChunkIndex(file)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "chroma.sqlite3").write_bytes(b"not a database" * 1000)
    for _ in range(2):  # Chroma keeps what it began of the first try
        with pytest.raises(StoreError, match="damaged"):
            ChunkIndex(damaged)


def test_on_a_full_disk_it_searches_and_refuses_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma itself may hang there."""
    place = tmp_path / "index"
    with ChunkIndex(place) as made:
        made.add([chunk("a"), chunk("b")], [[1.0, 0.0], [0.0, 1.0]])
    files = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=50_000))
        index = ChunkIndex(place)
        assert index.search([1.0, 0.1], 1)[0][0] == "a"
        for write in (
            lambda: index.add([chunk("c")], [[1.0, 1.0]]),
            lambda: index.remove(["a"]),
        ):
            with pytest.raises(StoreError, match=r"No space left on device: 50,000 bytes of 1,0"):
                write()
    assert {path: path.read_bytes() for path in files} == files
    index.remove(["a"])  # there is room again
    index.close()
    with ChunkIndex(place) as again:
        assert again.ids() == {"b"}


def test_room_is_needed_for_what_is_added(
    index: ChunkIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_100_000))
    index.add([chunk("a")], [[1.0, 0.0]])
    with pytest.raises(StoreError, match="No space left on device"):
        index.add([replace(chunk("b"), text="long " * 2_000 + "text")], [[1.0, 0.0]])
    assert index.ids() == {"a"}


@pytest.mark.parametrize("call", ["add", "remove", "ids", "matching"])
def test_where_opening_anew_failed_the_next_call_opens_it(
    index: ChunkIndex, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    index.add([chunk("a")], [[1.0, 0.0]])

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("chromadb.PersistentClient", full)
        index.refresh()
        with pytest.raises(StoreError, match="No space left"):
            index.ids()
    calls: dict[str, Callable[[], object]] = {
        "add": lambda: index.add([chunk("a")], [[1.0, 0.0]]),
        "remove": lambda: index.remove(["b"]),
        "ids": index.ids,
        "matching": lambda: index.matching({"title": "Title a"}),
    }
    calls[call]()
    assert index.ids() == {"a"}
