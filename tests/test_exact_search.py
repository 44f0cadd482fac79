"""Searches of a store compare every vector; where that can't be, Chroma's graph is searched."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fusionrag_integrations.documents.chunk_record import ChunkRecord, EncodedChunk
from fusionrag_integrations.documents.embedding import LexicalEmbedder
from fusionrag_integrations.documents.keys import isolated_key
from fusionrag_integrations.documents.types import Chunk, Document
from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreClosedError,
    StoreError,
    StoreMismatchError,
)
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.record_format import FORMAT_VERSION
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.store.vector_index import exact as exact_search
from fusionrag_integrations.store.vector_index.check import faults
from fusionrag_integrations.store.vector_index.chroma import ChromaIndex
from fusionrag_integrations.store.vector_index.exact import ExactSearch
from tests.processes import in_child
from tests.synthetic_store import RandomEmbedding, make_store, name_of

INFO = StoreInfo(FORMAT_VERSION, "s", "no model", "random", 256, "float32")
CROWD = 300


def of_one_template(number: int) -> str:
    return (
        f"The fox number {number} jumps over the lazy dog near the old river bank and it is a long "
        "text for all of us."
    )


@dataclass(frozen=True)
class Scaled(RandomEmbedding):
    scale: float = 1.0

    def embed_query(self, text: str) -> list[float]:
        return [self.scale * x for x in super().embed_query(text)]


class Filled:
    """A catalog and an index that are filled side by side, without a store."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self.catalog = Catalog.create(path / "catalog.sqlite", INFO)
        self.index = ChromaIndex(path / "index")
        self.exact = ExactSearch(self.index, self.catalog)

    def add(self, vectors: dict[str, list[float]], scope: str = "", **metadata: int) -> None:
        """One document of these chunks."""
        document = Document(min(vectors), text="x", scope=scope, metadata=metadata)
        chunks = [
            Chunk(name, document.id, i, name, scope=scope, metadata=metadata)
            for i, name in enumerate(vectors)
        ]
        self.index.add(chunks, list(vectors.values()))
        records = [
            ChunkRecord(EncodedChunk(chunk, (i,), ((0, 1),)), isolated_key((i,), "s", ""))
            for i, chunk in enumerate(chunks)
        ]
        self.catalog.documents.replace(document.key, document.id, records, vectors)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Filled]:
    store = Filled(tmp_path / "store")
    yield store
    store.exact.close()
    store.index.close()
    store.catalog.close()


@pytest.fixture
def crowd(store: Filled) -> dict[str, np.ndarray]:
    """Random vectors; every third chunk is in scope b, the others in a; each has a page."""
    drawn = np.random.default_rng(0).standard_normal((CROWD, 24)).astype(np.float32)
    vectors = {f"c{i:03}": vector for i, vector in enumerate(drawn)}
    for page in range(3):
        part = {f"c{i:03}": drawn[i].tolist() for i in range(page, CROWD, 3)}
        store.add(part, "b" if page == 0 else "a", page=page)
    return vectors


def scores(vectors: dict[str, np.ndarray], query: np.ndarray) -> dict[str, float]:
    return {
        name: float(vector @ query / np.linalg.norm(vector) / np.linalg.norm(query))
        for name, vector in vectors.items()
    }


def in_scope(name: str, scope: str | None) -> bool:
    return scope is None or (int(name[1:]) % 3 == 0) == (scope == "b")


@pytest.mark.parametrize("scope", [None, "a", "b"])
def test_the_nearest_are_found(
    store: Filled, crowd: dict[str, np.ndarray], scope: str | None
) -> None:
    for query in np.random.default_rng(1).standard_normal((10, 24)):
        right = {n: s for n, s in scores(crowd, query).items() if in_scope(n, scope)}
        found = store.exact.search(query.tolist(), 7, None if scope is None else [scope])
        assert [name for name, _ in found] == sorted(right, key=lambda n: -right[n])[:7]
        assert [score for _, score in found] == pytest.approx(sorted(right.values())[:-8:-1], 1e-4)


@pytest.mark.parametrize("memory", [exact_search.MEMORY, 0], ids=["exact", "by the graph"])
def test_neighbours_are_the_nearest_others_of_the_scope(
    store: Filled, crowd: dict[str, np.ndarray], memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_search, "MEMORY", memory)
    assert store.exact.is_exact == bool(memory)
    found = store.exact.neighbours(list(crowd), 5)
    assert found.keys() == crowd.keys()
    for name, vector in crowd.items():
        scope = "b" if in_scope(name, "b") else "a"
        right = {n: s for n, s in scores(crowd, vector).items() if in_scope(n, scope) and n != name}
        assert found[name] == sorted(right, key=lambda n: -right[n])[:5]


@pytest.mark.parametrize("memory", [exact_search.MEMORY, 0], ids=["exact", "by the graph"])
def test_neighbours_of_equal_vectors_leave_out_only_the_chunk_itself(
    store: Filled, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_search, "MEMORY", memory)
    store.add({f"n{i}": [1.0, 0.0] for i in range(1, 6)})
    store.add({"other": [1.0, 0.0]}, "elsewhere")
    found = store.exact.neighbours(["n2", "other", "n2"], 2)
    assert found == {"n2": ["n1", "n3"], "other": []}
    assert store.exact.neighbours(["n3"], 50)["n3"] == ["n1", "n2", "n4", "n5"]
    assert store.exact.neighbours([], 3) == {}
    with pytest.raises(StoreError, match=r"no vector of chunk 'gone' \(1 missing\)"):
        store.exact.neighbours(["n1", "gone"], 1)


def test_a_filter_and_scopes_hold_together(store: Filled, crowd: dict[str, np.ndarray]) -> None:
    vector = crowd["c004"].tolist()
    assert store.exact.search(vector, 1, where={"page": 1})[0][0] == "c004"
    found = store.exact.search(vector, CROWD, ["a", "unknown"], {"page": {"$gt": 1}})
    assert {name for name, _ in found} == {f"c{i:03}" for i in range(2, CROWD, 3)}
    assert store.exact.search(vector, 5, ["b"], {"page": 1}) == []
    assert store.exact.search(vector, 5, []) == []
    with pytest.raises(InvalidInputError, match="The filter"):
        store.exact.search(vector, 1, where={"page": {"$near": 1}})


def test_equal_vectors_come_by_their_ids_wherever_they_stand(store: Filled) -> None:
    rng = np.random.default_rng(2)
    same = rng.standard_normal(384).tolist()
    store.add({f"n{i:03}": same for i in range(0, 97, 2)})
    store.add({f"n{i:03}": rng.standard_normal(384).tolist() for i in range(1, 97, 2)})
    found = store.exact.search(same, 60)
    assert [name for name, _ in found[:49]] == [f"n{i:03}" for i in range(0, 97, 2)]
    assert store.exact.search(same, 3) == found[:3]
    for _ in range(20):  # a matrix product adds up its last row in another order
        near = (np.array(same) + 0.1 * rng.standard_normal(384)).tolist()
        assert store.exact.search(near, 1)[0][0] == "n000"
    assert store.exact.neighbours(["n004"], 3) == {"n004": ["n000", "n002", "n006"]}


def test_scopes_are_told_apart_to_the_last_character(store: Filled) -> None:
    scopes = ["board", "board\x00", "board ", "Board", ""]
    for i, scope in enumerate(scopes):
        store.add({f"c{i}": [1.0, i / 10]}, scope)
    for i, scope in enumerate(scopes):
        assert [name for name, _ in store.exact.search([1.0, 0.0], 9, [scope])] == [f"c{i}"]
        assert store.exact.neighbours([f"c{i}"], 9) == {f"c{i}": []}


def test_an_empty_store_and_zeros(store: Filled) -> None:
    assert store.exact.search([1.0, 0.0], 3) == []
    assert store.exact.neighbours([], 3) == {}
    store.add({"a": [1.0, 0.0], "z": [0.0, 0.0]})
    assert store.exact.search([2.0, 0.0], 3) == [("a", 1.0), ("z", 0.0)]
    store.add({"large": [0.0, 3e38], "small": [0.0, -1e-38]})
    found = store.exact.search([0.0, 1e30], 4)
    assert found == [("large", 1.0), ("a", 0.0), ("z", 0.0), ("small", -1.0)]
    assert store.exact.search([0.0, -1e-30], 1) == [("small", 1.0)]


def test_nothing_is_near_to_zeros(store: Filled) -> None:
    store.add({"a": [1.0, 0.0], "z": [0.0, 0.0]})
    assert store.exact.search([0.0, 0.0], 1 << 40) == [("a", 0.0), ("z", 0.0)]


def test_bad_arguments_are_refused(store: Filled) -> None:
    store.add({"a": [1.0, 0.0]})
    with pytest.raises(StoreMismatchError, match="dimension of 2, got 3"):
        store.exact.search([1.0, 0.0, 0.0], 1)
    for call in (
        lambda: store.exact.search([1.0, 0.0], 0),
        lambda: store.exact.neighbours(["a"], 0),
    ):
        with pytest.raises(InvalidInputError, match="k is 0"):
            call()
    with pytest.raises(StoreError, match=r"no vector of chunk 'gone' \(1 missing\)"):
        store.exact.neighbours(["a", "gone"], 1)


def test_what_changes_is_found_at_once(store: Filled) -> None:
    store.add({"a": [1.0, 0.0]})
    assert store.exact.search([0.0, 1.0], 1) == [("a", 0.0)]
    other = Catalog.open(store.catalog.path)  # as another process has it
    store.index.add([Chunk("b", "b", 0, "b")], [[0.0, 1.0]])
    record = ChunkRecord(EncodedChunk(Chunk("b", "b", 0, "b"), (1,), ((0, 1),)), "key")
    document = Document("b", text="b").key
    other.documents.replace(document, "b", [record])
    assert not store.exact.is_exact
    other.vectors.set({"b": [0.0, 1.0]})
    assert store.exact.is_exact
    assert store.exact.search([0.0, 1.0], 1) == [("b", 1.0)]
    other.documents.delete([document])
    other.close()
    assert store.exact.search([0.0, 1.0], 1) == [("a", 0.0)]


def test_chunks_of_one_template_are_all_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma's graph leads to a part of them."""
    embedder = LexicalEmbedder()
    with make_store(tmp_path / "store", 4, embedder, 75, of_one_template) as corpus:
        lost = [
            number
            for number in range(300)
            if corpus.search(of_one_template(number), 1)[0].chunk.id != name_of(number)
        ]
        assert lost == []
        assert list(faults(corpus.catalog, corpus.path / "index")) == []
        similar = corpus.similar([name_of(7)], 299)
        assert len(similar[name_of(7)]) == 299
        monkeypatch.setattr(exact_search, "MEMORY", 0)
        (fault,) = faults(corpus.catalog, corpus.path / "index")
        assert "chunks aren't found by their own vectors" in fault


def test_a_store_that_takes_too_much_memory_is_searched_by_the_graph(
    store: Filled, crowd: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = crowd["c004"].tolist()
    exact = store.exact.search(vector, 9, ["a"], {"page": 1})
    neighbours = store.exact.neighbours(["c004", "c030"], 4)
    assert store.exact.is_exact
    monkeypatch.setattr(exact_search, "MEMORY", CROWD * 24 * 4 - 1)
    graph = ExactSearch(store.index, store.catalog)
    assert not graph.is_exact
    found = graph.search(vector, 9, ["a"], {"page": 1})
    assert [name for name, _ in found] == [name for name, _ in exact]
    assert [score for _, score in found] == pytest.approx([score for _, score in exact], abs=1e-5)
    assert graph.neighbours(["c004", "c030"], 4) == neighbours


@pytest.mark.parametrize(
    "damage", ["substr(vector, 2)", "zeroblob(9)", "1", "(SELECT x FROM other)"]
)
def test_where_a_vector_is_damaged_the_graph_is_searched(
    store: Filled, crowd: dict[str, np.ndarray], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    import zlib

    with sqlite3.connect(store.catalog.path) as db:
        db.execute("CREATE TEMP TABLE other AS SELECT ? AS x", (zlib.compress(b"0123" * 3),))
        db.execute(f"UPDATE vectors SET vector = {damage} WHERE chunk_id = 'c007'")
    with caplog.at_level(logging.WARNING):
        for name in ("c007", "c008"):
            assert store.exact.search(crowd[name].tolist(), 1)[0][0] == name
    (warning,) = caplog.messages
    assert "'c007'" in warning


def test_vectors_are_read_once_for_all_threads_and_afterwards_only_new_ones(
    store: Filled, crowd: dict[str, np.ndarray]
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    read: list[list[str]] = []
    packed_vectors = store.catalog.vectors.packed

    def counted(chunk_ids: list[str]) -> dict[str, bytes]:
        read.append(chunk_ids)
        return packed_vectors(chunk_ids)

    store.catalog.vectors.packed = counted  # type: ignore[method-assign, assignment]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: store.exact.search(crowd[name].tolist(), 1), crowd))
    assert [hits[0][0] for hits in found] == list(crowd)
    assert read == [sorted(crowd)]
    store.add({"new": [1.0] * 24})
    store.catalog.documents.delete([Document("c001", scope="a").key])
    found = [store.exact.search(crowd[name].tolist(), 1) for name in ("c002", "c004")]
    assert found[0][0] == ("c002", pytest.approx(1.0))
    assert found[1][0][1] < 0.9
    assert store.exact.search([1.0] * 24, 1) == [("new", pytest.approx(1.0))]
    assert read[1:] == [["new"]]


def test_what_was_closed_holds_no_vectors_and_leaves_the_index_open(store: Filled) -> None:
    store.add({"a": [1.0, 0.0]})
    assert store.exact.search([1.0, 0.0], 1) == [("a", 1.0)]
    for _ in range(2):
        store.exact.close()
    for call in (
        lambda: store.exact.search([1.0, 0.0], 1),
        lambda: store.exact.neighbours(["a"], 1),
        lambda: store.exact.is_exact,
    ):
        with pytest.raises(StoreClosedError):
            call()
    assert store.index.ids() == {"a"}


def test_a_store_stays_where_a_link_to_it_has_led(tmp_path: Path) -> None:
    """Whatever is opened anew later, such as after a fork, is opened there."""
    for name, first in (("one", 0), ("other", 100)):
        with make_store(tmp_path / name, 1, RandomEmbedding(8), 9, lambda i, n=first: str(i + n)):
            pass
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one")
    with Store.open(link, RandomEmbedding(8)) as corpus:
        assert corpus.search("3", 1)[0].chunk.text == "3"
        link.unlink()
        link.symlink_to(tmp_path / "other")
        in_child(lambda: None)
        assert corpus.search("3", 1)[0].chunk.text == "3"
        assert corpus.search("3", 1, where={"title": ""})[0].chunk.text == "3"
        assert corpus.changes.delete(corpus.catalog.documents.all()) == 1
    with Store.open(link, RandomEmbedding(8)) as corpus:
        assert corpus.catalog.counts().chunks == 9


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_vectors_of_any_length_are_found_and_no_damage(tmp_path: Path, scale: float) -> None:
    embedding = Scaled(16, scale=scale)
    with make_store(tmp_path / "store", 1, embedding, 30) as corpus:
        for number in range(30):
            (hit,) = corpus.search(str(number), 1)
            assert (hit.chunk.text, hit.score) == (str(number), pytest.approx(1.0))
        assert list(faults(corpus.catalog, corpus.path / "index")) == []


def test_numbers_beyond_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no list of finite numbers"):
        make_store(tmp_path / "store", 1, Scaled(8, scale=1e39), 3)
