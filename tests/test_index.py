"""Chroma in a directory; what it has in common with other indexes is in store/contracts."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import chromadb
import numpy as np
import pytest

from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import InvalidInputError, StoreError, StoreMismatchError
from fusionrag_integrations.store.vector_index.chroma import ChromaIndex


def chunk(name: str, scope: str = "", metadata: dict[str, str | int | bool] | None = None) -> Chunk:
    return Chunk(name, f"doc-{name}", 0, f"text of {name}", f"Title {name}", scope, metadata or {})


@pytest.fixture
def index(tmp_path: Path) -> Iterator[ChromaIndex]:
    index = ChromaIndex(tmp_path / "index")
    yield index
    index.close()


def test_reopening_finds_what_was_there(tmp_path: Path) -> None:
    first = ChromaIndex(tmp_path)
    first.add([chunk("a", "s")], [[3.0, 4.0]])
    first.close()
    again = ChromaIndex(tmp_path)
    assert again.search([3.0, 4.0], 2) == [("a", pytest.approx(1.0))]
    again.close()


def test_it_closes_while_python_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing can be imported any more."""
    index = ChromaIndex(tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "chromadb.errors", None)
        index.close()


def test_a_directory_made_anew_is_empty(tmp_path: Path) -> None:
    first = ChromaIndex(tmp_path / "x")
    first.add([chunk("a")], [[1.0]])
    first.close()
    shutil.rmtree(tmp_path / "x")
    again = ChromaIndex(tmp_path / "x")
    assert again.ids() == set()
    again.close()


@pytest.mark.parametrize("spread", [0.01, 100.0], ids=["similar", "diverse"])
def test_the_first_removal_after_many_additions_costs_what_it_removes(
    index: ChromaIndex, spread: float
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


def test_more_than_one_batch(index: ChromaIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chromadb.api.client.Client.get_max_batch_size", lambda _: 4)
    chunks = [chunk(f"c{i}") for i in range(11)]
    index.add(chunks, np.eye(11).tolist())
    assert [i for i, _ in index.search(np.eye(11)[9].tolist(), 1)] == ["c9"]
    index.remove([c.id for c in chunks[:9]])
    assert index.ids() == {"c9", "c10"}


def test_text_and_metadata_are_kept_and_user_keys_cannot_hide_ours(
    index: ChromaIndex, tmp_path: Path
) -> None:
    index.add([chunk("a", "s", {"year": 1911, "scope": "public", "ok": True})], [[1.0, 0.0]])
    with closing(chromadb.PersistentClient(str(tmp_path / "index"))) as client:
        stored = client.get_collection("chunks").get(include=["documents", "metadatas"])
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


def test_another_length_of_vector_is_a_mismatch(index: ChromaIndex, tmp_path: Path) -> None:
    index.add([chunk("a")], [[1.0, 0.0]])
    with pytest.raises(StoreMismatchError, match=r"dimension of 2, got 3") as caught:
        index.search([1.0, 0.0, 0.0], 1)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(StoreMismatchError, match=r"dimension of 2, got 3"):
        index.add([chunk("b")], [[1.0, 0.0, 0.0]])
    assert index.ids() == {"a"}


def test_bad_arguments_are_refused(index: ChromaIndex) -> None:
    index.add([chunk("a")], [[1.0, 0.0]])
    for k in (0, -1):
        with pytest.raises(InvalidInputError, match=f"k is {k}"):
            index.search([1.0, 0.0], k)
    with pytest.raises(InvalidInputError, match="2 chunks were given with 1 embeddings"):
        index.add([chunk("b"), chunk("c")], [[1.0, 0.0]])
    with pytest.raises(InvalidInputError, match="twice"):
        index.add([chunk("b"), chunk("b")], [[1.0, 0.0]] * 2)
    with pytest.raises(InvalidInputError, match="NaN"):
        index.add([chunk("b")], [[float("nan"), 0.0]])
    assert index.ids() == {"a"}


def test_a_directory_that_is_a_file_or_damaged_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match="file"):
        ChromaIndex(file)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "chroma.sqlite3").write_bytes(b"not a database" * 1000)
    for _ in range(2):  # Chroma keeps what it began of the first try
        with pytest.raises(StoreError, match="damaged"):
            ChromaIndex(damaged)


def test_on_a_full_disk_it_searches_and_refuses_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma itself may hang there."""
    place = tmp_path / "index"
    with ChromaIndex(place) as made:
        made.add([chunk("a"), chunk("b")], [[1.0, 0.0], [0.0, 1.0]])
    files = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=50_000))
        index = ChromaIndex(place)
        assert index.search([1.0, 0.1], 1)[0][0] == "a"
        for write in (
            lambda: index.add([chunk("c")], [[1.0, 1.0]]),
            lambda: index.remove(["a"]),
        ):
            with pytest.raises(StoreError, match=r"No space left on device: 50,000 bytes of 8,3"):
                write()
    assert {path: path.read_bytes() for path in files} == files
    index.remove(["a"])  # there is room again
    index.close()
    with ChromaIndex(place) as again:
        assert again.ids() == {"b"}


def test_room_is_needed_for_what_is_added(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=8_450_000))
    index.add([chunk("a")], [[1.0, 0.0]])
    with pytest.raises(StoreError, match="No space left on device"):
        index.add([replace(chunk("b"), text="long " * 2_000 + "text")], [[1.0, 0.0]])
    assert index.ids() == {"a"}


@pytest.mark.parametrize("call", ["add", "remove", "ids", "matching"])
def test_where_opening_anew_failed_the_next_call_opens_it(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch, call: str
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


def test_a_directory_that_may_not_be_written_is_searched_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"
    with ChromaIndex(place) as made:
        made.add([chunk("a")], [[1.0, 0.0]])
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    with ChromaIndex(place) as index:
        assert index.search([1.0, 0.1], 1)[0][0] == "a"
        with pytest.raises(StoreError, match="Permission denied"):
            index.add([chunk("b")], [[0.0, 1.0]])
        with pytest.raises(StoreError, match="Permission denied"):
            index.remove(["a"])
    monkeypatch.undo()
    with ChromaIndex(place) as again:
        assert again.ids() == {"a"}


def test_entries_are_vectors_and_metadata_of_known_chunks(index: ChromaIndex) -> None:
    index.add([chunk("a", "s"), chunk("b")], [[3.0, 4.0], [1.0, 0.0]])
    entries = index.entries(["a", "unknown"])
    assert entries.keys() == {"a"}
    vector, metadata = entries["a"]
    assert list(vector) == pytest.approx([0.6, 0.8])
    assert metadata == {
        "scope": "s",
        "metadata_document_id": "doc-a",
        "metadata_title": "Title a",
    }
