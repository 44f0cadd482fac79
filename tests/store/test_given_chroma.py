"""A store whose index is on a client of chromadb's, or in one of its collections."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import chromadb
import httpx
import numpy as np
import pytest
from chromadb.api.rust import RustBindingsAPI

from fusionrag_integrations import Store
from fusionrag_integrations.documents.types import DocumentKey
from fusionrag_integrations.errors import InvalidInputError, StoreError, StoreMismatchError
from fusionrag_integrations.store.repair import repair
from fusionrag_integrations.store.vector_index.entries import STORE_KEY
from tests.processes import in_child
from tests.synthetic_store import RandomEmbedding, index_problems, make_store, name_of, update

EMBEDDING = RandomEmbedding(8)
ANY = {"title": {"$ne": "none"}}  # a filter that all chunks match, so that the index is asked


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    with chromadb.PersistentClient(str(tmp_path / "chroma")) as client:
        yield client


def own(client: Any, store: Store) -> Any:
    """The store's own collection on a client."""
    return client.get_collection(f"fusionrag-{store.catalog.info.store_id}")


def found(store: Store, number: int, k: int = 1) -> list[str]:
    """The texts nearest to a number, by the index."""
    return [hit.chunk.text for hit in store.search(str(number), k, where=ANY)]


def test_it_has_a_collection_of_its_own_on_a_client(client: Any, tmp_path: Path) -> None:
    with make_store(tmp_path / "store", 2, EMBEDDING, chunks=6, index=client) as store:
        collection = own(client, store)
        assert found(store, 7) == ["7"]
    assert collection.count() == 12  # whoever gave the client may go on using it
    hnsw = collection.configuration_json["hnsw"]
    assert (hnsw["space"], hnsw["ef_search"], hnsw["max_neighbors"]) == ("cosine", 200, 32)
    assert not (tmp_path / "store/index").exists()


def test_it_is_searched_as_an_index_in_the_directory_is(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusionrag_integrations.store.vector_index.exact.MEMORY", 0)
    with (
        make_store(tmp_path / "a", 5, EMBEDDING, index=client) as given,
        make_store(tmp_path / "b", 5, EMBEDDING) as embedded,
    ):
        for number in range(0, 300, 7):
            hits = [(h.chunk.id, h.score) for h in given.search(str(number), 5)]
            assert hits == [
                (h.chunk.id, pytest.approx(h.score)) for h in embedded.search(str(number), 5)
            ]
        ids = [name_of(number) for number in range(0, 300, 11)]
        assert given.similar(ids, 4) == embedded.similar(ids, 4)


def test_without_it_the_store_says_what_to_give(
    client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with make_store(tmp_path / "store", 1, EMBEDDING, chunks=4, index=client) as store:
        name = own(client, store).name
    said = rf"isn't in its directory: it is the Chroma collection '{name}'. Open .* with index="
    with pytest.raises(StoreError, match=said):
        Store.open(tmp_path / "store", EMBEDDING)
    assert not (tmp_path / "store/index").exists()
    assert index_problems(tmp_path / "store") == []
    assert "index" not in [problem.area for problem in repair(tmp_path / "store")]
    assert "isn't checked" in caplog.text
    assert not (tmp_path / "store/index").exists()


def test_and_how_to_have_it_in_the_directory_again(client: Any, tmp_path: Path) -> None:
    make_store(tmp_path / "store", 1, EMBEDDING, chunks=4, index=client).close()
    (tmp_path / "store/index.json").unlink()
    fixed = [(problem.area, problem.fixed) for problem in repair(tmp_path / "store")]
    assert ("index", True) in fixed
    with Store.open(tmp_path / "store", EMBEDDING) as store:
        assert found(store, 2) == ["2"]


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff" * 40])
def test_a_damaged_note_of_where_it_is_is_found_and_removed(
    client: Any, tmp_path: Path, content: bytes
) -> None:
    make_store(tmp_path / "store", 1, EMBEDDING, chunks=4, index=client).close()
    (tmp_path / "store/index.json").write_bytes(content)
    paths = [problem.path.name for problem in index_problems(tmp_path / "store")]
    assert paths == ["index", "index.json"]
    fixed = {problem.path.name for problem in repair(tmp_path / "store") if problem.fixed}
    assert {"index", "index.json"} <= fixed
    assert index_problems(tmp_path / "store") == []


@pytest.mark.parametrize("is_open", [False, True], ids=["reopened", "open"])
@pytest.mark.parametrize("loss", ["deleted", "emptied"])
def test_a_collection_that_lost_chunks_is_filled_again(
    client: Any, tmp_path: Path, is_open: bool, loss: str
) -> None:
    store = make_store(tmp_path / "store", 2, EMBEDDING, chunks=6, index=client)
    if not is_open:
        store.close()
    collection = own(client, store)
    if loss == "deleted":
        client.delete_collection(collection.name)
    else:
        collection.delete(ids=collection.get()["ids"][3:])
    if not is_open:
        store = Store.open(tmp_path / "store", EMBEDDING, index=client)
    with store:
        assert found(store, 7, 20)[0] == "7"
        assert len(found(store, 7, 20)) == own(client, store).count() == 12


def test_a_reader_asks_for_what_is_new_alone(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []  # how many ids each answer had
    get = RustBindingsAPI._get

    def counted(*args: Any, **kwargs: Any) -> Any:
        answer = get(*args, **kwargs)
        asked.append(len(answer["ids"]))
        return answer

    with (
        make_store(tmp_path / "store", 10, EMBEDDING, chunks=6, index=client) as writer,
        Store.open(tmp_path / "store", EMBEDDING, index=client) as reader,
    ):
        reader.search("3", 1)
        monkeypatch.setattr(RustBindingsAPI, "_get", counted)
        for number in range(5):
            assert reader.search(str(number), 1)[0].chunk.text == str(number)
        assert asked == []
        with writer.writing():
            writer.changes.replace([update(10, 6)])
        asked.clear()
        assert reader.search("62", 1)[0].chunk.text == "62"
        assert asked == [6]
        asked.clear()
        with writer.writing():
            writer.changes.delete([DocumentKey("d00010", "")])
        assert reader.search("62", 1)[0].chunk.text != "62"
        assert sum(asked) == 0


def test_a_private_client_is_filled_with_what_another_process_changed(tmp_path: Path) -> None:
    """As many chunks as before, but others."""
    with (
        chromadb.PersistentClient(str(tmp_path / "one")) as one,
        chromadb.PersistentClient(str(tmp_path / "two")) as two,
        make_store(tmp_path / "store", 2, EMBEDDING, chunks=3, index=one) as writer,
        Store.open(tmp_path / "store", EMBEDDING, index=two) as reader,
    ):
        assert found(reader, 1) == ["1"]
        with writer.writing():
            writer.changes.delete([DocumentKey("d00000", "")])
            writer.changes.replace([update(5, 3)])
        assert found(reader, 16) == ["16"]
        assert len(found(reader, 16, 9)) == 6


def unreachable(*_: object, **__: object) -> None:
    request = httpx.Request("GET", "http://chroma.example:8000/api/v2")
    raise httpx.ConnectError("[Errno 111] Connection refused", request=request)


CALLS = ["_get", "_query", "_upsert", "_delete", "get_or_create_collection"]
SAID = r"The Chroma server at http://chroma.example:8000 can't be reached: .*Connection refused"


def test_a_server_that_is_down_is_named_and_the_next_call_works(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_store(tmp_path / "store", 2, EMBEDDING, chunks=6, index=client) as store:
        with monkeypatch.context() as patch:
            for call in CALLS:
                patch.setattr(RustBindingsAPI, call, unreachable)
            with pytest.raises(StoreError, match=SAID):
                found(store, 7)
            assert store.search("7", 1)[0].chunk.text == "7"  # which needs no index
            with pytest.raises(StoreError, match=SAID), store.writing():
                store.changes.replace([update(2, 6)])
        assert found(store, 7) == ["7"]
        with store.writing(), store.changes.begin(lambda: None):
            store.changes.replace([update(2, 6)])
        assert found(store, 15) == ["15"]


def test_a_change_that_a_server_broke_off_is_completed(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_store(tmp_path / "store", 3, EMBEDDING, chunks=6, index=client) as store:
        with monkeypatch.context() as patch:
            patch.setattr(RustBindingsAPI, "_delete", unreachable)
            with (
                pytest.raises(StoreError, match=SAID),
                store.writing(),
                store.changes.begin(lambda: None),
            ):
                store.changes.delete([DocumentKey("d00001", "")])
        assert "7" not in found(store, 7, 20)
        assert own(client, store).count() == 18
        with store.writing(), store.changes.begin(lambda: None):
            pass
        assert own(client, store).count() == 12


@pytest.mark.parametrize(
    "error", [RuntimeError("closed"), Exception("<html>502"), chromadb.errors.InternalError("no")]
)
def test_what_else_a_client_raises_is_named(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    with make_store(tmp_path / "store", 1, EMBEDDING, chunks=3, index=client) as store:
        monkeypatch.setattr(RustBindingsAPI, "_get", fails)
        with pytest.raises(StoreError, match=f"'fusionrag-.*' can't be used: {error}"):
            found(store, 1)


def test_a_client_that_its_owner_closed_is_named(tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path / "chroma"))
    with make_store(tmp_path / "store", 1, EMBEDDING, chunks=3, index=client) as store:
        client.close()
        with pytest.raises(StoreError, match="can't be used"):
            found(store, 1)


def test_a_fork_is_refused_by_name(client: Any, tmp_path: Path) -> None:
    with make_store(tmp_path / "store", 1, EMBEDDING, chunks=3, index=client) as store:
        said = in_child(lambda: found(store, 1))
        assert said.startswith("StoreError: The Chroma client of the store at")
        assert "forked" in said
        assert found(store, 1) == ["1"]


def test_no_write_is_larger_than_the_server_takes(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_store(tmp_path / "store", 1, EMBEDDING, chunks=25, index=client)
    made.close()
    client.delete_collection(own(client, made).name)
    monkeypatch.setattr("chromadb.api.client.Client.get_max_batch_size", lambda _: 4)
    upsert = RustBindingsAPI._upsert
    sizes: list[int] = []

    def counted(api: Any, collection_id: Any, ids: Sequence[str], *rest: Any, **named: Any) -> Any:
        sizes.append(len(ids))
        return upsert(api, collection_id, ids, *rest, **named)

    monkeypatch.setattr(RustBindingsAPI, "_upsert", counted)
    with Store.open(tmp_path / "store", EMBEDDING, index=client) as store:
        assert found(store, 7) == ["7"]
    assert sizes == [4, 4, 4, 4, 4, 4, 1]


class Refusing(chromadb.EmbeddingFunction):
    """Of a collection that only other programs embed for."""

    def __init__(self) -> None:
        pass

    def __call__(self, input: Any) -> Any:
        raise AssertionError("something was embedded")

    @staticmethod
    def name() -> str:
        return "refusing"

    def get_config(self) -> dict[str, Any]:
        return {}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> Any:
        raise AssertionError("an embedding function was made")


@pytest.fixture
def shared(client: Any) -> Any:
    """A collection of another program, with entries of its own."""
    collection = client.create_collection("notes", embedding_function=Refusing())
    vectors = np.random.default_rng(1).standard_normal((20, 8))
    collection.add(
        ids=[f"note-{i}" for i in range(20)],
        embeddings=list(vectors.astype(np.float32)),
        documents=[f"note {i}" for i in range(20)],
        metadatas=[{"page": i} for i in range(20)],
    )
    return collection


def test_several_stores_and_programs_share_a_collection(shared: Any, tmp_path: Path) -> None:
    before = shared.get(include=["embeddings", "documents", "metadatas"])
    first = make_store(tmp_path / "first", 2, EMBEDDING, chunks=6, index=shared)
    second = make_store(tmp_path / "second", 1, EMBEDDING, chunks=4, index=shared)
    copied = shared.get(where={STORE_KEY: first.catalog.info.store_id}, limit=1)["metadatas"]
    shared.add(ids=["a copy"], embeddings=[[1.0] * 8], documents=["7"], metadatas=copied)
    assert shared.count() == 20 + 12 + 4 + 1
    assert found(first, 7, 20)[0] == "7"
    assert (len(found(first, 7, 20)), len(found(second, 1, 20))) == (12, 4)
    with first, first.writing(), first.changes.begin(lambda: None):
        first.changes.delete([DocumentKey("d00000", ""), DocumentKey("d00001", "")])
        first.changes.embed_missing(lambda *_: None)
    assert len(found(second, 1, 20)) == 4
    second.close()
    assert shared.get(ids=["a copy"])["ids"] == ["a copy"]
    after = shared.get(ids=before["ids"], include=["embeddings", "documents", "metadatas"])
    assert after["documents"] == before["documents"]
    assert after["metadatas"] == before["metadatas"]
    assert np.array_equal(after["embeddings"], before["embeddings"])
    assert shared.count() == 20 + 4 + 1


def test_a_collection_of_vectors_of_another_length_is_refused(shared: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 0, RandomEmbedding(5), index=shared)
    with (
        pytest.raises(StoreMismatchError, match=r"'notes' holds .*another length.* of 8, got 5"),
        store.writing(),
    ):
        store.changes.replace([update(0, 3)])
    assert shared.count() == 20


def test_a_collection_that_is_gone_is_named(client: Any, shared: Any, tmp_path: Path) -> None:
    with make_store(tmp_path / "store", 1, EMBEDDING, chunks=3, index=shared) as store:
        client.delete_collection("notes")
        with pytest.raises(StoreError, match=r"'notes' is gone: .*open the store with that"):
            found(store, 1)
    again = client.create_collection("notes")
    with Store.open(tmp_path / "store", EMBEDDING, index=again) as store:
        assert found(store, 1) == ["1"]


def test_an_unknown_space_is_refused_before_anything_is_made(
    shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chromadb.Collection.configuration_json", {"hnsw": {"space": "hamming"}})
    with pytest.raises(InvalidInputError, match="compares vectors by 'hamming'"):
        make_store(tmp_path / "store", 0, EMBEDDING, index=shared)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "given", ["http://localhost:8000", 8000, object()], ids=["an address", "a port", "an object"]
)
def test_what_is_no_index_is_refused_before_anything_is_made(tmp_path: Path, given: object) -> None:
    with pytest.raises(InvalidInputError, match=r"index is .*give a client of chromadb"):
        make_store(tmp_path / "store", 0, EMBEDDING, index=given)
    assert not (tmp_path / "store").exists()


def test_copies_of_a_store_need_places_of_their_own(client: Any, tmp_path: Path) -> None:
    make_store(tmp_path / "store", 1, EMBEDDING, chunks=3, index=client).close()
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    name = uuid4().hex
    client.create_collection(name)
    with Store.open(tmp_path / "copy", EMBEDDING, index=client.get_collection(name)) as copy:
        assert found(copy, 1) == ["1"]
