"""Requests passed on to replicas, of which some are lost: Ray's handle is played here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.ray.passing import Head, Piece, PlainRequest
from fusionrag_integrations.ray.relay import ATTEMPTS, Relay
from fusionrag_integrations.server.entrance import Entrance
from fusionrag_integrations.server.gate import Gate
from fusionrag_integrations.server.keys import Caller, Keys
from fusionrag_integrations.server.limits import Limits
from fusionrag_integrations.server.records import Record
from fusionrag_integrations.server.traffic import Traffic

CHAT, DOCUMENTS = "/v1/chat/completions", "/v1/documents"
KEY, GUEST = "the key", "a guest's"
OK = Head(200, ((b"content-type", b"application/json"),))
EVENTS = Head(200, ((b"content-type", b"text/event-stream"),))


class ReplicaLostError(Exception):
    """As Ray tells that a replica's process ended."""


class Replicas:
    """A handle, whose replicas give these pieces in turn, or raise them."""

    def __init__(
        self, *replies: list[Any], metrics: Mapping[str, str] | Exception | None = None
    ) -> None:
        self._replies = iter(replies)
        self._metrics = metrics or {}
        self.asked: list[tuple[PlainRequest, dict[str, int]]] = []
        self.told: list[tuple[Any, ...]] = []
        self.cancelled = 0
        self.hold: asyncio.Event | None = None

    def options(self, **given: Any) -> Any:
        if given == {"method_name": "prefetch"}:
            return SimpleNamespace(remote=self._prefetch)
        assert given == {"method_name": "reply", "stream": True}
        return self

    async def _prefetch(self, handles: Sequence[KVHandle], needed: dict[str, int]) -> None:
        self.told.append(("prefetch", handles, needed))

    def remote(self, request: PlainRequest, needed: dict[str, int]) -> Any:
        self.asked.append((request, needed))
        return Response(self, next(self._replies))

    def broadcast(self, method: str, *given: Any) -> Any:
        self.told.append((method, *given))
        return self

    async def results_async(self) -> list[tuple[str, Head, bytes]]:
        if isinstance(self._metrics, Exception):
            raise self._metrics
        return [(name, OK, text.encode()) for name, text in self._metrics.items()]


class Response:
    def __init__(self, owner: Replicas, pieces: list[Any]) -> None:
        self._owner, self._pieces = owner, pieces

    async def __aiter__(self) -> AsyncIterator[Piece]:
        for piece in self._pieces:
            if self._owner.hold is not None:
                await self._owner.hold.wait()
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def cancel(self) -> None:
        self._owner.cancelled += 1


class Finder:
    """Finds the same in every body, or fails."""

    def __init__(self, found: dict[str, int] | Exception) -> None:
        self._found = found

    def needed(self, body: bytes, scopes: Any) -> dict[str, int]:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


class World:
    def __init__(self, replicas: Replicas, found: Any = None, caller: Caller | None = None) -> None:
        limits = Limits()
        callers = {} if caller is None else {KEY: caller, GUEST: Caller("guest")}
        digests = {sha256(key.encode()).hexdigest(): who for key, who in callers.items()}
        keys = Keys(digests) if digests else None
        self.ended: list[Record] = []
        relay = Relay(replicas, Finder(found or {}), limits, (ReplicaLostError,))  # type: ignore[arg-type]
        self.gate = Gate(relay, Entrance(keys, limits, Traffic()), self.ended.append)

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.gate, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://of-a-test")

    def ask(self, method: str = "POST", path: str = CHAT, **given: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            async with self.client() as client:
                return await client.request(method, path, **given)

        return asyncio.run(asked())


def test_a_reply_is_the_replicas() -> None:
    replicas = Replicas([Head(418, ((b"x-of", b"a replica"),)), b"one ", b"two"])
    world = World(replicas, {"key": 7})
    response = world.ask(json={"a": 1}, headers={"x-of": "a client"})
    assert (response.status_code, response.text) == (418, "one two")
    assert response.headers["x-of"] == "a replica"
    [(request, needed)] = replicas.asked
    assert needed == {"key": 7}
    assert (request.method, request.path, json.loads(request.body)) == ("POST", CHAT, {"a": 1})
    assert (b"x-of", b"a client") in request.headers
    assert response.headers["x-request-id"] == request.request_id
    assert [record.passed_on for record in world.ended] == [True]  # the replica logs it


def test_a_replica_that_is_lost_before_it_replies_costs_nothing() -> None:
    lost = [ReplicaLostError()]
    replicas = Replicas(lost, lost, [OK, b"[]"])
    assert World(replicas).ask().text == "[]"
    assert len(replicas.asked) == 3


@pytest.mark.parametrize(
    ("method", "path", "attempts"),
    [("POST", CHAT, ATTEMPTS), ("POST", DOCUMENTS, 1), ("DELETE", f"{DOCUMENTS}/a", 1)],
)
def test_one_that_is_lost_again_and_again_is_told(method: str, path: str, attempts: int) -> None:
    """Changes of documents aren't tried again: they may have been made."""
    replicas = Replicas(*[[ReplicaLostError()]] * 9)
    world = World(replicas)
    response = world.ask(method, path)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "replica_lost"
    assert response.headers["retry-after"] == "1"
    assert len(replicas.asked) == attempts
    assert [record.passed_on for record in world.ended] == [False]  # nobody else logs it


def test_one_that_is_lost_within_a_stream_is_its_last_event() -> None:
    replicas = Replicas([EVENTS, b"data: 1\n\n", ReplicaLostError()], [OK])
    response = World(replicas).ask()
    first, last, _ = response.text.split("\n\n")
    assert first == "data: 1"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert len(replicas.asked) == 1


def test_other_errors_are_the_servers() -> None:
    response = World(Replicas([ZeroDivisionError()])).ask()
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"


def test_chunks_that_cannot_be_looked_for_are_none() -> None:
    replicas = Replicas([OK, b"{}"])
    assert World(replicas, StoreError("damaged")).ask().status_code == 200
    assert replicas.asked[0][1] == {}


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/models"), ("POST", "/v1/tokenize"), ("POST", DOCUMENTS)]
)
def test_what_reads_no_chunks_goes_anywhere(method: str, path: str) -> None:
    replicas = Replicas([OK, b"{}"])
    World(replicas, {"key": 7}).ask(method, path)
    assert replicas.asked[0][1] == {}


def concurrently(
    world: World, replicas: Replicas, *asks: Callable[[httpx.AsyncClient], Any]
) -> list[Any]:
    """Requests while replicas hold what they were asked, then what they got."""

    async def all_of() -> list[Any]:
        replicas.hold = asyncio.Event()
        async with world.client() as client:
            tasks = []
            for ask in asks:
                tasks.append(asyncio.create_task(ask(client)))
                await asyncio.sleep(0.05)
            before = len(replicas.asked)
            replicas.hold.set()
            return [before, *[reply.status_code for reply in await asyncio.gather(*tasks)]]

    return asyncio.run(all_of())


def test_changes_of_documents_wait_for_each_other() -> None:
    replicas = Replicas(*[[OK, b"{}"]] * 3)
    asks = [lambda client: client.post(DOCUMENTS)] * 3
    assert concurrently(World(replicas), replicas, *asks) == [1, 200, 200, 200]


def test_who_may_not_change_documents_does_not_wait_to_hear_it() -> None:
    replicas = Replicas([OK, b"{}"], [Head(403, ()), b"{}"])
    world = World(replicas, caller=Caller("writer", may_write=True))
    asks = [
        lambda client: client.post(DOCUMENTS, headers={"Authorization": f"Bearer {KEY}"}),
        lambda client: client.post(DOCUMENTS, headers={"Authorization": f"Bearer {GUEST}"}),
    ]
    assert concurrently(world, replicas, *asks) == [2, 200, 403]


def test_a_keys_requests_are_counted_together() -> None:
    replicas = Replicas(*[[OK, b"{}"]] * 3)
    world = World(replicas, caller=Caller("a", may_write=True, at_once=2))
    headers = {"Authorization": f"Bearer {KEY}"}
    asks = [
        lambda client: client.post(CHAT, headers=headers),
        lambda client: client.post(DOCUMENTS, headers=headers),
        lambda client: client.post(CHAT, headers=headers),
        lambda client: client.get("/v1/models", headers=headers),
    ]
    assert concurrently(world, replicas, *asks) == [3, 200, 200, 429, 200]


def test_a_client_that_goes_away_cancels_the_replicas_answer() -> None:
    replicas = Replicas([OK, b"{}"])
    world = World(replicas)

    async def leave() -> None:
        replicas.hold = asyncio.Event()
        async with world.client() as client:
            task = asyncio.create_task(client.post(CHAT))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(leave())
    assert replicas.cancelled == 1


def test_a_change_whose_client_goes_away_is_made_to_its_end_before_the_next() -> None:
    replicas = Replicas([OK, b"{}"], [OK, b"{}"])
    world = World(replicas)

    async def leave() -> None:
        replicas.hold = asyncio.Event()
        async with world.client() as client:
            first, second = (asyncio.create_task(client.post(DOCUMENTS)) for _ in range(2))
            await asyncio.sleep(0.05)
            first.cancel()
            await asyncio.sleep(0.05)
            assert len(replicas.asked) == 1
            replicas.hold.set()
            assert (await second).status_code == 200
            with pytest.raises(asyncio.CancelledError):
                await first

    asyncio.run(leave())
    assert replicas.cancelled == 0


def test_metrics_that_a_lost_replica_cannot_give_are_told_as_that() -> None:
    replicas = Replicas(metrics=ReplicaLostError())
    assert World(replicas).ask("GET", "/metrics").json()["error"]["code"] == "replica_lost"


def test_metrics_are_of_all_replicas() -> None:
    text = '# HELP a_total Of a.\n# TYPE a_total counter\na_total{{kind="x"}} {}.0\n'
    replicas = Replicas(metrics={"one": text.format(1), "two": text.format(2)})
    response = World(replicas).ask("GET", "/metrics")
    assert response.text == (
        '# HELP a_total Of a.\n# TYPE a_total counter\na_total{kind="x",replica="one"} 1.0\n'
        'a_total{kind="x",replica="two"} 2.0\n'
    )
    assert World(Replicas()).ask("GET", "/metrics").status_code == 503


def test_what_a_look_up_has_found_is_told_where_it_will_be_needed() -> None:
    fields = {"chunk_id": "a", "isolated_key": "key a", "fused_key": ""}
    reply = json.dumps({"data": [{"handle": None}, {"handle": fields}]}).encode()
    replicas = Replicas([OK, reply[:9], reply[9:]])
    asked = {"texts": [{"text": "new"}, {"text": "of a"}], "scopes": ["board"]}
    world = World(replicas)

    async def look_up() -> None:
        async with world.client() as client:
            assert (await client.post("/v1/retrieve", json=asked)).content == reply
        await asyncio.sleep(0.05)

    asyncio.run(look_up())
    assert replicas.told == [
        ("prefetch", (KVHandle("a", "key a"),), {"key a": 4}),
        ("register", ("new",), "board"),
    ]


def test_a_look_up_that_failed_tells_nothing() -> None:
    replicas = Replicas([Head(400, ()), b"{}"])
    assert World(replicas).ask(path="/v1/retrieve").status_code == 400
    assert replicas.told == []


def test_a_large_body_is_refused_here() -> None:
    replicas = Replicas()
    response = World(replicas).ask(content=b"x" * (Limits().body_bytes + 1))
    assert response.status_code == 413
    assert replicas.asked == []
