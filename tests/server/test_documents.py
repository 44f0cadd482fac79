"""Searching, and documents that come, are listed and go, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.documents.handles import document_order
from tests.conftest import town
from tests.server.conftest import Running, running

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
QUESTION = "Which house of town number 1 is near the bank?"


@pytest.fixture
def changing(engine: FusionEngine) -> Iterator[Running]:
    """A server over a store of its own."""
    with running(engine) as server:
        yield server


def retrieve(served: Running, **body: Any) -> Any:
    with served.client() as client:
        response = client.post("/v1/retrieve", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_question_finds_chunks_in_the_order_of_prompts(
    served: Running, filled: FusionEngine
) -> None:
    found = retrieve(served, query=QUESTION, k=4)
    own = document_order(filled.store.search(QUESTION, 4))
    assert found["object"] == "list"
    assert [row["id"] for row in found["data"]] == [hit.chunk.id for hit in own]
    first, hit = found["data"][0], own[0]
    assert first == {
        "id": hit.chunk.id,
        "document_id": hit.chunk.document_id,
        "title": hit.chunk.title,
        "index": hit.chunk.index,
        "text": hit.chunk.text,
        "scope": hit.chunk.scope,
        "score": pytest.approx(hit.score),
        "metadata": {},
        "handle": asdict(hit.handle),
    }


def test_scopes_and_filters(served: Running) -> None:
    board = retrieve(served, query=QUESTION, scopes=["board"])["data"]
    assert {row["scope"] for row in board} == {"board"}
    where = {"document_id": "town-0"}
    found = retrieve(served, query=QUESTION, where=where, k=9)["data"]
    assert {row["document_id"] for row in found} == {"town-0"}


def test_vectors_where_they_are_asked_for(served: Running, filled: FusionEngine) -> None:
    found = retrieve(served, query=QUESTION, k=2, embeddings=True)
    assert found["query_embedding"] == pytest.approx(filled.store.embed_question(QUESTION))
    own = filled.store.embeddings([row["id"] for row in found["data"]])
    for row in found["data"]:
        assert row["embedding"] == pytest.approx(own[row["id"]])


def test_texts_are_looked_up_and_unknown_ones_registered(changing: Running) -> None:
    with changing.client() as client:
        document = {"id": "t", "text": town(0).text}
        assert client.post("/v1/documents", json={"documents": [document]}).status_code == 200
        chunk = town(0).text.split("\n\n")[0]
        other = town(7).text.split("\n\n")[0]
        texts = [{"text": chunk, "source": "t"}, {"text": other}]
        known, unknown = retrieve(changing, texts=texts)["data"]
        assert known["handle"]["chunk_id"]
        assert unknown == {"handle": None}
        body = {"prompt": f"{other}\n\nWhich house?", "max_tokens": 1}
        answers = [client.post("/v1/completions", json=body).json() for _ in range(2)]
        assert answers[0]["fusionrag"]["usage"]["captured_tokens"] > 0
        assert answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "either query or texts"),
        ({"query": "a", "texts": []}, "either query or texts"),
        ({"texts": [], "k": 3}, "k can't be given with texts"),
        ({"query": " "}, "question is empty"),
        ({"query": "a", "k": 0}, "k: "),
        ({"query": "a", "scopes": []}, "scopes: "),
        ({"query": "a", "where": {"page": {"$near": 3}}}, "filter"),
        ({"query": "a", "limit": 3}, "limit: "),
        ({"query": "a", "where": {"a": {"$in": [*range(200_000)]}}}, "1 conditions with 200,000"),
        ({"query": "a", "where": {"a": {"$nin": [*range(10_001)]}}}, "at most 900 conditions"),
        ({"query": "a", "where": {"$or": [{"a": n} for n in range(901)]}}, "901 conditions with"),
        ({"texts": [{"text": "a"}] * 1001}, "at most 1000 items"),
    ],
)
def test_what_cannot_be_searched_by(served: Running, body: Any, told: str) -> None:
    with served.client() as client:
        response = client.post("/v1/retrieve", json=body)
    assert response.status_code == 400
    assert told in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "where", [{"a": {"$in": [*range(10_000)]}}, {"$or": [{"a": n} for n in range(900)]}]
)
def test_the_largest_filters(served: Running, where: Any) -> None:
    assert retrieve(served, query="a", where=where)["data"] == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"text": ' + b"9" * 5000 + b"}", "an integer of more than 4,300 digits"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"text": "\xff"}', "no UTF-8: invalid start byte at byte 10"),
        (b'{"text": "a"', "no JSON: Expecting ',' delimiter"),
    ],
    ids=["integer", "nested", "bytes", "cut"],
)
def test_bodies_that_cannot_be_read(served: Running, body: bytes, told: str) -> None:
    with served.client() as client:
        headers = {"Content-Type": "application/json"}
        response = client.post("/v1/tokenize", content=body, headers=headers)
    assert response.status_code == 400
    assert told in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/v1/documents"])
def test_head_is_as_get(served: Running, path: str) -> None:
    with served.client() as client:
        got, head = client.get(path), client.head(path)
    assert head.status_code == got.status_code == 200
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.content == b""


def test_documents_come_and_go(changing: Running, engine: FusionEngine) -> None:
    given = [
        {"id": "a/b c", "text": town(0).text, "title": "T", "metadata": {"page": 3}},
        {"id": "two", "text": town(1).text, "scope": "board"},
    ]
    with changing.client() as client:
        report = client.post("/v1/documents", json={"documents": given}).json()
        assert (report["documents_new"], report["fused_computed"]) == (2, report["chunks"])
        again = client.post("/v1/documents", json={"documents": given}).json()
        assert again["documents_unchanged"] == 2
        assert client.get("/v1/documents").json() == {
            "object": "list",
            "data": [
                {"id": "a/b c", "title": "T", "scope": "", "chunks": 3},
                {"id": "two", "title": "", "scope": "board", "chunks": 3},
            ],
            "has_more": False,
        }
        [hit] = retrieve(changing, query="town number 0", k=1, where={"page": 3})["data"]
        assert hit["metadata"] == {"page": 3}
        missing = client.delete("/v1/documents/two")
        assert missing.status_code == 404
        assert missing.json()["error"]["type"] == "not_found_error"
        gone = client.delete("/v1/documents/two", params={"scope": "board"})
        assert gone.json()["deleted"] is True
        assert client.delete("/v1/documents/a/b%20c").json()["id"] == "a/b c"
    assert engine.store.catalog.documents.all() == []


def test_numbers_that_json_does_not_have_are_null(changing: Running, engine: FusionEngine) -> None:
    engine.ingest([replace(town(0, 1), metadata={"a": float("nan"), "b": float("inf"), "c": 2.5})])
    [found] = retrieve(changing, query=QUESTION, k=1)["data"]
    assert found["metadata"] == {"a": None, "b": None, "c": 2.5}


def test_what_cannot_be_ingested(changing: Running) -> None:
    with changing.client() as client:
        for document, told in (
            ({"id": "", "text": "a"}, "id"),
            ({"id": "a"}, "documents.0.text"),
            ({"id": "a", "text": "a", "tilte": ""}, "documents.0.tilte"),
        ):
            response = client.post("/v1/documents", json={"documents": [document]})
            assert response.status_code == 400
            assert told in response.json()["error"]["message"]


def test_a_document_is_given_once(changing: Running, engine: FusionEngine) -> None:
    one = {"id": "one", "text": "A text."}
    with changing.client() as client:
        twice = {"documents": [one, one | {"scope": "", "text": "Another text."}]}
        response = client.post("/v1/documents", json=twice)
        assert response.status_code == 400
        assert "'one' of scope '' is given 2 times" in response.json()["error"]["message"]
        assert engine.store.catalog.documents.all() == []
        apart = {"documents": [one, one | {"scope": "board"}]}
        assert client.post("/v1/documents", json=apart).json()["documents_new"] == 2


def test_a_store_that_another_process_changes(
    changing: Running, engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusionrag_integrations.store.store.PATIENCE", 0.0)
    with engine.store.writing(), changing.client() as client:
        body = {"documents": [{"id": "a", "text": "b"}]}
        response = client.post("/v1/documents", json=body)
    assert response.status_code == 409
    assert response.headers["retry-after"] == "1"
    assert str(engine.store.path) not in response.text


def test_pages_of_documents(changing: Running, engine: FusionEngine) -> None:
    """Documents of one id are on one page, so that an id alone tells where the next one begins."""
    towns = [replace(town(n, 1), id=f"{n}") for n in (1, 2, 3)]
    engine.ingest([*towns, *(replace(one, scope="north") for one in towns)])
    seen: list[list[tuple[str, str]]] = []
    after: dict[str, Any] = {}
    with changing.client() as client:
        more = True
        while more:
            page = client.get("/v1/documents", params={"limit": 3, **after}).json()
            seen.append([(row["id"], row["scope"]) for row in page["data"]])
            after, more = {"after": seen[-1][-1][0]}, page["has_more"]
        assert seen == [
            [("1", ""), ("1", "north"), ("2", ""), ("2", "north")],
            [("3", ""), ("3", "north")],
        ]
        only = client.get("/v1/documents", params={"scope": "north", "limit": 2}).json()
        assert [(row["id"], row["scope"]) for row in only["data"]] == [
            ("1", "north"),
            ("2", "north"),
        ]
        assert only["has_more"]
        beyond = client.get("/v1/documents", params={"after": "3"}).json()
        assert (beyond["data"], beyond["has_more"]) == ([], False)
        assert client.get("/v1/documents", params={"limit": 0}).status_code == 400


def test_what_would_be_ignored_of_an_address_is_refused(changing: Running) -> None:
    with changing.client() as client:
        for response in (
            client.get("/v1/documents", params={"scpoe": "north"}),
            client.delete("/v1/documents/1", params={"scpoe": "north"}),
        ):
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "scpoe"


def test_an_id_that_is_too_long_for_an_address(changing: Running) -> None:
    body = {"documents": [{"id": "x" * 1_025, "text": "b"}]}
    with changing.client() as client:
        error = client.post("/v1/documents", json=body).json()["error"]
    assert "1024 characters" in error["message"]


def test_tokens(served: Running, filled: FusionEngine) -> None:
    messages: Any = [{"role": "user", "content": "Which house?"}]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    with served.client() as client:

        def post(**body: Any) -> Any:
            return client.post("/v1/tokenize", json=body).json()

        assert post(text="the old bridge") == {"token_ids": filled.encode("the old bridge")}
        assert post(prompt="a bridge") == {"count": filled.count_tokens("a bridge")}
        assert post(prompt="a bridge", raw=True) == {
            "count": filled.count_tokens("a bridge", raw=True)
        }
        assert post(messages=messages) == {"count": filled.count_tokens(messages)}
        with_tool = post(messages=messages, tools=[tool])
        assert with_tool == {"count": filled.count_tokens(messages, [tool])}
        assert with_tool["count"] > post(messages=messages)["count"]
        for body in ({}, {"text": "a", "prompt": "b"}, {"text": "a", "raw": True}):
            assert client.post("/v1/tokenize", json=body).status_code == 400


def test_handles_are_of_the_scopes_asked_for(filled: FusionEngine, tmp_path: Path) -> None:
    store = filled.store
    ids = store.catalog.chunks.ids()
    handles = store.handles(reversed(ids))
    assert [handle.chunk_id for handle in handles] == ids[::-1]
    own = store.handles([*ids, "unknown"], ["board"])
    records = store.catalog.chunks.records([handle.chunk_id for handle in own])
    assert {record.chunk.scope for record in records.values()} == {"board"}
    assert 0 < len(own) < len(ids)
    assert store.handles(ids, []) == []
