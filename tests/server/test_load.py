"""Many requests, large ones, clients that go away, and the server's end."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any

import httpx
import openai
import pytest
import torch

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.server import Keys, Limits, create_app, entrance
from fusionrag_integrations.store.store import Store
from tests.conftest import town
from tests.server.conftest import Running, running
from tests.steps import PATIENCE, Steps, kv_in_use
from tests.waiting import until

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
PROMPT = f"{town(0).text}\n\nWhich house?"
BODY: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 4}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    made = Steps(monkeypatch)
    yield made
    made.go_on()  # whoever still waits


def ask(server: Running, key: str = "", **more: Any) -> httpx.Response:
    with server.client(key) as client:
        return client.post("/v1/completions", json={**BODY, **more})


@contextmanager
def streamed(server: Running) -> Iterator[Iterator[str]]:
    """A stream, after its headers came."""
    body = {**BODY, "stream": True}
    with server.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        yield response.iter_lines()


def counts(server: Running) -> dict[str, int]:
    """Requests at work and waiting."""
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    found = [line.split() for line in lines if line.startswith("fusionrag_requests_now{")]
    return {name.split('"')[1]: int(float(count)) for name, count in found}


def test_many_at_once_get_their_own_answers(served: Running) -> None:
    prompts = [f"{town(n % 3).text}\n\nWhich house {n}?" for n in range(8)]
    alone = [ask(served, prompt=prompt).json()["choices"] for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda prompt: ask(served, prompt=prompt).json()["choices"], prompts)
    assert list(together) == alone


def test_requests_wait_for_their_turn_and_those_beyond_are_turned_away(
    filled: FusionEngine, steps: Steps
) -> None:
    steps.hold_at(0)
    with (
        running(filled, limits=Limits(at_once=1, queue=2)) as server,
        ThreadPoolExecutor(3) as pool,
    ):
        waiting = [pool.submit(ask, server) for _ in range(3)]
        until(lambda: counts(server)["queued"] == 2)
        assert counts(server)["answering"] == 1
        refused = ask(server)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model=filled.model_name, **BODY)
        steps.go_on()
        assert [each.result().status_code for each in waiting] == [200] * 3
        until(lambda: counts(server)["answering"] == 0)
        assert ask(server).status_code == 200


def test_a_key_with_a_limit_of_its_own(filled: FusionEngine, keys: Keys, steps: Steps) -> None:
    steps.hold_at(0)
    with running(filled, keys) as server, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, server, "guest")]
        assert steps.is_held.wait(PATIENCE)
        refused = ask(server, "guest")
        assert refused.status_code == 429
        assert "This key has 1 requests" in refused.json()["error"]["message"]
        waiting.append(pool.submit(ask, server, "board"))
        steps.go_on()
        assert [each.result().status_code for each in waiting] == [200] * 2
        assert ask(server, "guest").status_code == 200


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> Iterator[threading.Event]:
    """Calls of a method set the event, and go on at the end of the block."""
    begun, go_on = threading.Event(), threading.Event()
    call = getattr(owner, name)

    def wait(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE)
        return call(*args, **kwargs)

    monkeypatch.setattr(owner, name, wait)
    try:
        yield begun
    finally:
        go_on.set()


def look_up(server: Running, key: str = "") -> list[httpx.Response]:
    """A search, a count of tokens and a list."""
    with server.client(key) as client:
        return [
            client.post("/v1/retrieve", json={"query": "a house"}),
            client.post("/v1/tokenize", json={"text": "a house"}),
            client.get("/v1/documents"),
        ]


def test_a_keys_limit_counts_look_ups(filled: FusionEngine, keys: Keys, steps: Steps) -> None:
    steps.hold_at(0)
    with running(filled, keys) as server, ThreadPoolExecutor(1) as pool:
        answered = pool.submit(ask, server, "guest")
        assert steps.is_held.wait(PATIENCE)
        for refused in look_up(server, "guest"):
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
        assert {each.status_code for each in look_up(server, "board")} == {200}
        steps.go_on()
        assert answered.result().status_code == 200
        assert {each.status_code for each in look_up(server, "guest")} == {200}


def test_look_ups_wait_for_a_turn_of_their_own(
    filled: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(at_once=1, queue=0)
    with running(filled, limits=limits) as server, ThreadPoolExecutor(1) as pool:
        with held(monkeypatch, Store, "embed_question") as is_held:
            first = pool.submit(look_up, server)
            assert is_held.wait(PATIENCE)
            for refused in look_up(server):
                assert refused.status_code == 429
                assert refused.headers["retry-after"] == "1"
            with server.client() as client:
                for path in ("/health", "/metrics", "/v1/models"):
                    assert client.get(path).status_code == 200
            assert ask(server).status_code == 200
        assert {each.status_code for each in first.result()} == {200}


@pytest.mark.parametrize("told", [True, False], ids=["told", "counted"])
def test_a_body_that_is_too_large(filled: FusionEngine, told: bool) -> None:
    content = b'{"prompt": "' + b"a" * 2000 + b'"}'
    headers = {"Content-Type": "application/json"}
    with running(filled, limits=Limits(body_bytes=1000)) as server, server.client() as client:
        given = content if told else iter([content[:900], content[900:]])
        response = client.post("/v1/completions", content=given, headers=headers)
        assert response.status_code == 413
        assert response.json()["error"]["type"] == "invalid_request_error"
        assert ask(server, prompt="a").status_code == 200


def test_a_client_that_leaves_a_stream_ends_its_request(
    served: Running, filled: FusionEngine, steps: Steps
) -> None:
    steps.hold_at(2)
    with streamed(served):
        assert steps.is_held.wait(PATIENCE)
        assert kv_in_use(filled) >= 3
    until(lambda: counts(served)["answering"] == 0)  # at once, for the step is still held
    steps.go_on()
    until(lambda: not kv_in_use(filled))
    assert steps.count <= 3


def test_a_client_that_leaves_before_its_answer_ends_its_request(
    filled: FusionEngine, steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    steps.hold_at(2)
    with running(filled) as server:
        leave(server, steps.is_held.is_set)
        until(lambda: counts(server)["answering"] == 0)  # at once, for the step is still held
        steps.go_on()
        until(lambda: not kv_in_use(filled))
        with server.client() as client:
            told = client.get("/metrics").text
    assert steps.count <= 3
    gone = 'fusionrag_requests_total{endpoint="/v1/completions",status="499"} 1.0'
    assert gone in told.splitlines()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_client_that_leaves_while_it_waits_gets_no_turn(
    filled: FusionEngine, steps: Steps
) -> None:
    steps.hold_at(0)
    with running(filled, limits=Limits(at_once=1)) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, server)
        assert steps.is_held.wait(PATIENCE)
        leave(server, lambda: counts(server)["queued"] == 1)
        until(lambda: counts(server)["queued"] == 0)
        steps.go_on()
        assert first.result().status_code == 200
    assert steps.count == BODY["max_tokens"] - 1


def leave(server: Running, when: Callable[[], bool]) -> None:
    """Ask, and go away before the answer, once something holds."""

    async def asking() -> None:
        async with httpx.AsyncClient(base_url=server.url) as client:
            task = asyncio.create_task(client.post("/v1/completions", json=BODY))
            while not await asyncio.to_thread(when):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(asyncio.wait_for(asking(), PATIENCE))


def test_a_server_that_ends_lets_answers_finish_and_lets_nobody_in(
    filled: FusionEngine, steps: Steps
) -> None:
    steps.hold_at(1)
    with running(filled) as server, streamed(server) as lines:
        assert steps.is_held.wait(PATIENCE)
        server.server.should_exit = True
        with server.client() as client:
            until(lambda: client.get("/health").status_code == 503)
        refused = ask(server)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "closing"
        steps.go_on()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    with pytest.raises(httpx.ConnectError):
        ask(server)


@contextmanager
def half_sent(server: Running) -> Iterator[HTTPConnection]:
    """A request whose body doesn't come."""
    before = others_under_way(server)
    connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    with closing(connection):
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "99")
        connection.endheaders(b"{")
        until(lambda: others_under_way(server) > before)
        yield connection


def others_under_way(server: Running) -> int:
    """Requests that are under way, beside this one."""
    return counts(server)["under_way"] - 1


def test_a_server_that_ends_waits_for_no_body(filled: FusionEngine) -> None:
    limits = Limits(grace_seconds=2 * PATIENCE)
    with running(filled, limits=limits) as server, half_sent(server) as connection:
        server.server.should_exit = True
        response = connection.getresponse()
        assert response.status == 503
        assert json.loads(response.read())["error"]["code"] == "closing"


def test_a_client_that_sends_no_more_of_its_body_is_given_up(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance, "SILENCE", 0.2)
    with half_sent(served) as connection:
        response = connection.getresponse()
        assert response.status == 408
        assert "No more of the body came" in json.loads(response.read())["error"]["message"]
    until(lambda: others_under_way(served) == 0)


def ended(caplog: pytest.LogCaptureFixture) -> list[int]:
    """The statuses of requests in the log, but for metrics. Nothing in it failed."""
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    return [each["status"] for each in fields if each.get("endpoint", "/metrics") != "/metrics"]


def test_a_stream_that_takes_too_long_at_the_end_is_told_so(
    filled: FusionEngine, steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    steps.hold_at(1)
    with running(filled, limits=Limits(grace_seconds=0.1)) as server, streamed(server) as lines:
        assert steps.is_held.wait(PATIENCE)
        server.server.should_exit = True
        last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "closing"
        steps.go_on()
    until(lambda: not kv_in_use(filled))
    assert ended(caplog) == [200]


@pytest.mark.parametrize("signals", [1, 2])
def test_answers_that_are_broken_off_get_503(
    filled: FusionEngine, steps: Steps, caplog: pytest.LogCaptureFixture, signals: int
) -> None:
    """Once their time is up or at a second signal, under way or waiting."""
    caplog.set_level("INFO")
    steps.hold_at(1)
    limits = Limits(at_once=1, grace_seconds=0 if signals == 1 else PATIENCE)
    with running(filled, limits=limits) as server, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, server)]
        assert steps.is_held.wait(PATIENCE)
        asked.append(pool.submit(ask, server))
        until(lambda: counts(server)["queued"] == 1)
        for _ in range(signals):
            server.server.handle_exit(signal.SIGTERM, None)
        check_closing([each.result() for each in asked])
        steps.go_on()
    until(lambda: not kv_in_use(filled))
    assert ended(caplog) == [503, 503]


@pytest.mark.parametrize(
    ("owner", "name", "path", "body"),
    [
        (FusionEngine, "ingest", "/v1/documents", {"documents": [{"id": "a", "text": "b"}]}),
        (Store, "embed_question", "/v1/retrieve", {"query": "a house"}),
        (FusionEngine, "encode", "/v1/tokenize", {"text": "a house"}),
    ],
)
def test_whatever_is_broken_off_gets_503(
    engine: FusionEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    name: str,
    path: str,
    body: Any,
) -> None:
    caplog.set_level("INFO")
    with (
        held(monkeypatch, owner, name) as is_held,
        running(engine, limits=Limits(grace_seconds=0)) as server,
        ThreadPoolExecutor(1) as pool,
        server.client() as client,
    ):
        asked = pool.submit(client.post, path, json=body)
        assert is_held.wait(PATIENCE)
        server.server.should_exit = True
        check_closing([asked.result()])
    assert ended(caplog) == [503]


def test_a_client_that_reads_nothing_does_not_hold_up_the_end(filled: FusionEngine) -> None:
    async def end() -> None:
        app = create_app(filled)
        content = json.dumps({**BODY, "stream": True}).encode()
        messages = [{"type": "http.request", "body": content}]
        begun, never = asyncio.Event(), asyncio.Event()

        async def receive() -> Any:
            return messages.pop() if messages else await never.wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                begun.set()
                await never.wait()

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        asked = asyncio.create_task(app({**scope, "query_string": b""}, receive, send))
        await begun.wait()
        await app.state.service.traffic.end(0, hurry=lambda: False)
        await asked
        assert app.state.service.traffic.under_way == 0

    asyncio.run(asyncio.wait_for(end(), PATIENCE))
    until(lambda: not kv_in_use(filled))


def check_closing(responses: Sequence[httpx.Response]) -> None:
    for response in responses:
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "closing"


def test_an_error_in_a_stream_is_its_last_event(
    served: Running, filled: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusionrag_integrations.serving.pipeline import Pipeline

    decode = Pipeline.decode

    def fail(pipeline: Pipeline, request: Any, logits: torch.Tensor) -> None:
        if len(request.output.token_ids) == 2:
            raise RuntimeError("secret")
        decode(pipeline, request, logits)

    monkeypatch.setattr(Pipeline, "decode", fail)
    with streamed(served) as lines:
        last = [line for line in lines if line][-1]
    assert '"server_error"' in last
    assert "secret" not in last
    until(lambda: not kv_in_use(filled))
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIError, match="failed to answer"):
        list(client.completions.create(model=filled.model_name, stream=True, **BODY))


@pytest.mark.parametrize("given", [{"at_once": 0}, {"queue": -1}, {"grace_seconds": float("nan")}])
def test_limits_that_are_none(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="must be at least"):
        Limits(**given)
