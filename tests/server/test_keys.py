"""API keys: what a file of them holds, and that no key reaches another's scope."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.server import Keys
from tests.conftest import town
from tests.server.conftest import KEYS, Running, running

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
DIGEST = sha256(b"key").hexdigest()
OF_BOARD = f"{town(2).text}\n\nWhich house?"
QUESTION = "Which house of town number 2 is near the bank?"


@pytest.fixture
def guarded(filled: FusionEngine, keys: Keys) -> Iterator[Running]:
    with running(filled, keys) as server:
        yield server


@pytest.fixture
def changing(engine: FusionEngine, keys: Keys) -> Iterator[Running]:
    """With a store of its own, of a town for everybody and one for the board."""
    engine.ingest([town(0), replace(town(2), scope="board")])
    with running(engine, keys) as server:
        yield server


def complete(client: httpx.Client, prompt: str = OF_BOARD, **body: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 2, **body})


def reused(response: httpx.Response) -> int:
    assert response.status_code == 200, response.text
    count: int = response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return count


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/retrieve", {"query": "a"}),
        ("/v1/documents", {"documents": []}),
        ("/v1/tokenize", {"text": "a"}),
        ("/v1/models", None),
        ("/v1/documents", None),
        ("/metrics", None),
        ("/nothing", None),
    ],
)
def test_nothing_is_told_without_a_key(guarded: Running, path: str, body: Any) -> None:
    method = "GET" if body is None else "POST"
    for header in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": "Basic a"}):
        with guarded.client() as client:
            response = client.request(method, path, json=body, headers=header)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")


def test_a_body_is_not_read_before_the_key(guarded: Running) -> None:
    with guarded.client() as client:
        response = client.post("/v1/completions", content=b"{")
    assert response.status_code == 401


def test_health_needs_no_key(guarded: Running) -> None:
    with guarded.client() as client:
        assert client.get("/health").json() == {"status": "ok"}


def test_answers_use_kv_of_the_keys_scopes_alone(guarded: Running, filled: FusionEngine) -> None:
    ids = filled.store.catalog.chunks.ids()
    with guarded.client("board") as board, guarded.client("guest") as guest:
        assert reused(complete(board)) > 0
        assert reused(complete(guest)) == 0
        assert reused(complete(guest, chunk_ids=ids)) == 0
        assert reused(complete(guest, f"{town(0).text}\n\nWhich house?")) > 0
    with guarded.client("admin") as admin:
        assert reused(complete(admin)) > 0
        assert reused(complete(admin, scopes=[""])) == 0


@pytest.mark.parametrize("scopes", [["board"], ["", "board"]])
def test_another_scope_is_refused_by_name(guarded: Running, scopes: list[str]) -> None:
    with guarded.client("guest") as guest:
        message = {"role": "user", "content": "a"}
        for response in (
            complete(guest, scopes=scopes),
            complete(guest, scopes=scopes, stream=True),
            guest.post("/v1/chat/completions", json={"messages": [message], "scopes": scopes}),
            guest.post("/v1/retrieve", json={"query": "a", "scopes": scopes}),
            guest.post("/v1/retrieve", json={"texts": [{"text": "a"}], "scopes": scopes}),
            guest.get("/v1/documents", params={"scope": "board"}),
        ):
            assert response.status_code == 403
            error = response.json()["error"]
            assert error["type"] == "permission_error"
            assert "'board'" in error["message"]


def test_a_search_finds_what_the_key_may_see(guarded: Running) -> None:
    chunk = town(2).text.split("\n\n")[0]
    ask = {"texts": [{"text": chunk, "source": "town-2"}]}
    with guarded.client("guest") as guest, guarded.client("board") as board:
        for client, scope in ((guest, ""), (board, "board")):
            rows = client.post("/v1/retrieve", json={"query": QUESTION, "k": 9}).json()["data"]
            assert {row["scope"] for row in rows} == {scope}
            listed = client.get("/v1/documents").json()["data"]
            assert {row["scope"] for row in listed} == {scope}
        where = {"$or": [{"scope": "board"}, {"title": "Town 2"}]}
        rows = guest.post("/v1/retrieve", json={"query": QUESTION, "where": where}).json()["data"]
        assert rows == []
        assert board.post("/v1/retrieve", json=ask).json()["data"][0]["handle"]
        assert guest.post("/v1/retrieve", json=ask).json()["data"] == [{"handle": None}]


def test_a_text_that_one_key_registered_is_reused_for_no_other(changing: Running) -> None:
    other = town(7).text.split("\n\n")[0]
    prompt = f"{other}\n\nWhich house?"
    with changing.client("board") as board, changing.client("guest") as guest:
        board.post("/v1/retrieve", json={"texts": [{"text": other}]})
        complete(board, prompt)
        assert reused(complete(board, prompt)) > 0
        assert reused(complete(guest, prompt)) == 0


def test_counts_of_tokens_do_not_tell_of_other_scopes(
    changing: Running, engine: FusionEngine
) -> None:
    """A known chunk in a raw text is text; whether it is known to others doesn't show."""
    spelled = f"{town(5, 1).text} It says <|user|> and <|assistant|>."
    engine.ingest([replace(town(5, 1), text=spelled, scope="board")])
    body = {"prompt": f"<s><|user|>\n{spelled}<|end|>\n<|assistant|>\n", "raw": True}
    with changing.client("board") as board, changing.client("guest") as guest:
        known = board.post("/v1/tokenize", json=body).json()["count"]
        unknown = guest.post("/v1/tokenize", json=body).json()["count"]
    assert unknown < known
    engine.delete(["town-5"], scope="board")
    assert engine.count_tokens(str(body["prompt"]), raw=True) == unknown


def test_documents_are_changed_by_those_who_may(changing: Running, engine: FusionEngine) -> None:
    one = {"id": "new", "text": "A text of some words."}
    with changing.client("guest") as guest:
        for response in (
            guest.post("/v1/documents", json={"documents": []}),
            guest.post("/v1/documents", json={"documents": [one]}),
            guest.delete("/v1/documents/town-0"),
        ):
            assert response.status_code == 403
    with changing.client("board") as board:
        for scope in ("", "other"):
            named = {"documents": [one, one | {"scope": scope}]}
            for response in (
                board.post("/v1/documents", json=named),
                board.delete("/v1/documents/town-0", params={"scope": scope}),
                board.get("/v1/documents", params={"scope": scope}),
            ):
                assert response.status_code == 403
                assert response.json()["error"]["param"] == "scope"
        assert board.delete("/v1/documents/town-0").status_code == 404
        assert board.post("/v1/documents", json={"documents": [one]}).status_code == 200
        assert board.delete("/v1/documents/town-2").status_code == 200
    assert sorted(engine.store.catalog.documents.all()) == [("new", "board"), ("town-0", "")]


def test_an_ingest_does_not_tell_of_other_scopes(changing: Running, engine: FusionEngine) -> None:
    """It computes what is pending of all scopes; only who may use them all gets the counts."""
    one = {"id": "new", "text": "A text of some words."}
    documents = {"new": 1, "changed": 0, "unchanged": 0, "deleted": 0}
    with changing.client("board") as board, changing.client("admin") as admin:
        for given, new in (([one], 1), ([], 0)):
            report = board.post("/v1/documents", json={"documents": given}).json()
            assert report == {f"documents_{k}": n for k, n in (documents | {"new": new}).items()}
        report = admin.post("/v1/documents", json={"documents": []}).json()
    assert report["chunks"] == engine.store.catalog.counts().chunks
    assert report["fused_computed"] == 0


def test_metrics_are_of_everybody(guarded: Running) -> None:
    for name, status in (("guest", 403), ("board", 403), ("admin", 200)):
        with guarded.client(name) as client:
            assert client.get("/metrics").status_code == status


def test_logs_hold_no_key(guarded: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with guarded.client("guest") as guest:
        complete(guest)
    records = [record for record in caplog.records if record.message == "request"]
    assert records[-1].fields["caller"] == "guest"  # type: ignore[attr-defined]
    said = str([vars(record) for record in caplog.records])
    assert not any(key in said for key in KEYS.values())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[a", "can't be read"),
        ("", "no keys"),
        ("a = 1", "no table"),
        ("[a]\nscopes = ['x']", "needs sha256"),
        ("[a]\nsha256 = 'abc'\nscopes = ['x']", "64 hexadecimal digits"),
        (f"[a]\nsha256 = '{DIGEST}'", "needs scopes"),
        (f"[a]\nsha256 = '{DIGEST}'\nscopes = 'x'", "needs scopes"),
        (f"[a]\nsha256 = '{DIGEST}'\nscopes = []", "has no scopes"),
        (f"[a]\nsha256 = '{DIGEST}'\nscopes = [1]", "scopes is"),
        (f"[a]\nsha256 = '{DIGEST}'\nscopes = '*'\nmay_wriet = true", "'may_write'"),
        (f"[a]\nsha256 = '{DIGEST}'\nscopes = '*'\nmay_write = 1", "may_write is 1"),
        (f"[a]\nsha256 = '{DIGEST}'\nscopes = '*'\nat_once = 0", "at least 1"),
        (
            f"[a]\nsha256 = '{DIGEST}'\nscopes = '*'\n[b]\nsha256 = '{DIGEST}'\nscopes = '*'",
            "'b' and 'a'",
        ),
    ],
)
def test_files_that_hold_no_keys(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(content)
    with pytest.raises(InvalidInputError, match=told):
        Keys.read(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="can't be read"):
        Keys.read(tmp_path / "none.toml")
