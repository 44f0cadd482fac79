"""Replicas on Ray: they answer as one server does, whatever happens to them meanwhile."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.errors import FusionRAGError, InvalidInputError
from fusionrag_integrations.ray import deploying
from fusionrag_integrations.ray.cluster import cluster
from fusionrag_integrations.ray.passing import Head, PlainRequest
from fusionrag_integrations.ray.settings import EngineSettings, Replicas, ServingSettings
from fusionrag_integrations.server import Limits
from tests.cluster.conftest import bucket
from tests.cluster.serving import (
    COMPLETIONS,
    PATIENCE,
    PROMPT,
    Served,
    actor,
    model,
    written_keys,
)
from tests.conftest import town
from tests.server.conftest import KEYS, running
from tests.waiting import until

pytestmark = pytest.mark.enable_socket
CHAT = "/v1/chat/completions"
LONG = {"prompt": PROMPT, "max_tokens": 1_500}  # which takes more than a second
MESSAGES = [{"role": "user", "content": PROMPT}]
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
}
SAME = {
    "chat": (CHAT, {"messages": MESSAGES, "max_tokens": 12}),
    "stream": (CHAT, {"messages": MESSAGES, "max_tokens": 12, "stream": True}),
    "tools": (CHAT, {"messages": MESSAGES, "max_tokens": 6, "tools": [TOOL]}),
    "completion": (COMPLETIONS, {"prompt": PROMPT, "max_tokens": 12}),
    "isolated": (COMPLETIONS, {"prompt": PROMPT, "max_tokens": 12, "kv": "isolated"}),
    "full attention": (COMPLETIONS, {"prompt": PROMPT, "max_tokens": 12, "kv": "none"}),
    "sampled": (COMPLETIONS, {"prompt": PROMPT, "max_tokens": 12, "temperature": 1, "seed": 3}),
    "an unknown field": (CHAT, {"messages": MESSAGES, "ratioo": 1}),
    "no JSON object": (CHAT, []),
    "too long": (COMPLETIONS, {"prompt": "lamps " * 3000}),
    "another model": (CHAT, {"messages": MESSAGES, "model": "another"}),
    "tokens": ("/v1/tokenize", {"messages": MESSAGES}),
    "a search": ("/v1/retrieve", {"query": "Which house of town 1?", "k": 2}),
    "texts": ("/v1/retrieve", {"texts": [{"text": town(0).text}]}),
    "no such path": ("/v1/nothing", {}),
}


def fill(model: Path, store: Path | str) -> FusionEngine:
    engine = FusionEngine.from_pretrained(model, store=store, chunk_tokens=48)
    engine.ingest([town(0), town(1), replace(town(2), scope="board")])
    return engine


@pytest.fixture(scope="module")
def home(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replicas")


@pytest.fixture(scope="module")
def served(home: Path, model_dir: Path, ray_port: int) -> Iterator[Served]:
    """Replicas of a store in S3."""
    first = model(home / "first", model_dir, 0)
    url = f"{bucket()}/store"
    with fill(first, url) as alone:
        settings = ServingSettings(
            EngineSettings(str(first), url, refresh=0.2),
            written_keys(home / "keys.toml"),
            Limits(grace_seconds=20.0),
            Replicas(2, 2, cpus=0.1),
        )
        yield Served(ray_port, home / "keys.toml", settings, alone, deploying.deploy(settings))


@contextmanager
def streamed(served: Served, key: str = "admin") -> Iterator[Iterator[str]]:
    """A long answer, after its first event came."""
    body = {**LONG, "stream": True}
    with served.client(key) as client, client.stream("POST", COMPLETIONS, json=body) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        yield lines


def lasting(response: httpx.Response) -> Any:
    """What of a reply is the same each time."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        return response.status_code, stripped(response.json())
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    return response.status_code, [stripped(json.loads(event)) for event in events]


def stripped(value: Any) -> Any:
    """Without ids, times, and what depends on what was asked before; ids of chunks stay."""
    if isinstance(value, dict):
        volatile = {"created", "fusionrag", "prompt_tokens_details"}
        if str(value.get("object")).startswith(("chat", "text")):
            volatile.add("id")
        return {k: stripped(v) for k, v in value.items() if k not in volatile}
    return [stripped(one) for one in value] if isinstance(value, list) else value


def test_replies_are_those_of_a_server_alone(served: Served) -> None:
    with (
        running(served.alone, served.settings.keys) as server,
        server.client("admin") as alone,
        served.client() as replicas,
    ):
        for name, (path, body) in SAME.items():
            expected = lasting(alone.post(path, json=body))
            for _ in range(3):  # whichever replica
                assert lasting(replicas.post(path, json=body)) == expected, name
        for path in ("/health", "/v1/models", "/v1/documents", "/v1/models/none"):
            assert lasting(replicas.get(path)) == lasting(alone.get(path)), path


def test_keys_are_held_to_what_they_may_do(served: Served) -> None:
    with served.client("") as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/health").status_code == 200
    with served.client("guest") as client:
        assert client.get("/metrics").status_code == 403
        assert client.post("/v1/documents", json={"documents": []}).status_code == 403
        assert (
            client.post("/v1/retrieve", json={"query": "a", "scopes": ["board"]}).status_code == 403
        )
    too_much = b"x" * (served.settings.limits.body_bytes + 1)
    with served.client() as client:
        assert client.post(COMPLETIONS, content=too_much).status_code == 413


def test_what_is_no_request_is_refused(served: Served) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    with served.client("") as client:
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        assert client.get(COMPLETIONS, headers=upgrade | key).status_code == 403
        assert client.get("/health").status_code == 200


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    with pytest.raises(InvalidInputError, match="There is no Ray"), cluster("127.0.0.1:1"):
        pass


def test_a_keys_limit_counts_requests_at_all_replicas(served: Served) -> None:
    with streamed(served, "guest"):
        answers = [served.ask(key="guest") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [429] * 4
    until(lambda: served.ask(key="guest").status_code == 200)


def test_the_same_chunks_go_to_the_same_replica(served: Served) -> None:
    before = served.now("fusionrag_requests_total", COMPLETIONS)
    for number in range(6):
        assert served.ask(body={"prompt": f"{PROMPT} {number}"}).status_code == 200
    after = served.now("fusionrag_requests_total", COMPLETIONS)
    assert list((after - before).values()) == [6]


def test_what_a_search_finds_is_loaded_where_its_prompt_goes(served: Served) -> None:
    new = town(4)
    document = {"id": new.id, "text": new.text, "title": new.title, "scope": "of this test"}
    asked = {"query": "Which house?", "k": 3, "scopes": [document["scope"]]}

    def search() -> list[Any]:
        """What is found, once it is known where this is asked."""
        return list(client.post("/v1/retrieve", json=asked).json().get("data", ()))

    with served.client() as client:
        assert client.post("/v1/documents", json={"documents": [document]}).status_code == 200
        before = served.now("fusionrag_kv_records", "host")
        found = until(search)

        def loads() -> bool:
            """Asked again: the replica that is to load it may hear of the document later."""
            search()
            return (served.now("fusionrag_kv_records", "host") - before).total() >= 3

        until(loads)
    [loading] = served.now("fusionrag_kv_records", "host") - before
    requests = served.now("fusionrag_requests_total", COMPLETIONS)
    read = served.now("fusionrag_kv_hits_total", "disk")
    prompt = "\n\n".join([*(chunk["text"] for chunk in found), "Which?"])
    assert served.ask(body={"prompt": prompt}).status_code == 200
    assert served.now("fusionrag_requests_total", COMPLETIONS) - requests == {loading: 1}
    assert served.now("fusionrag_kv_hits_total", "disk") == read


def test_the_endpoint_has_loaded_no_model(served: Served) -> None:
    import ray

    def loaded(part: str) -> bool:
        return ray.get(actor(part).__ray_call__.remote(lambda _: "torch" in sys.modules))

    assert not loaded("#ingress#")
    assert loaded(f"#replica#{next(iter(served.now()))}")


def test_documents_change_at_all_replicas(served: Served) -> None:
    from ray import serve

    new = town(7)
    body = {"prompt": f"{new.text}\n\nWhich house?", "max_tokens": 2}
    headers = (
        (b"authorization", f"Bearer {KEYS['admin']}".encode()),
        (b"content-type", b"application/json"),
    )
    request = PlainRequest("1", "POST", COMPLETIONS, b"", headers, json.dumps(body).encode())
    replicas = serve.get_deployment_handle("replica", deploying.APPLICATION)

    def reused() -> list[int]:
        replies: list[tuple[str, Head, bytes]] = replicas.broadcast("whole", request).results()
        usages = [json.loads(reply[2])["fusionrag"]["chunks"] for reply in replies]
        return [usage["fused"] + usage["isolated"] for usage in usages]

    assert reused() == [0, 0]
    documents = [{"id": new.id, "text": new.text, "title": new.title}]
    with served.client() as client, ThreadPoolExecutor(4) as pool:
        added = pool.map(
            lambda _: client.post("/v1/documents", json={"documents": documents}), range(4)
        )
        assert [response.status_code for response in added] == [200] * 4  # they wait for each other
        until(lambda: reused() == [3, 3])
        assert client.delete(f"/v1/documents/{new.id}").status_code == 200
    until(lambda: reused() == [0, 0])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(served: Served, stream: bool) -> None:
    before = served.now("fusionrag_tokens_total", "completion")
    if stream:
        with streamed(served):
            pass
    else:
        with served.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post(COMPLETIONS, json=LONG, timeout=0.3)
    until(lambda: not any(served.now().values()))
    assert served.now("fusionrag_tokens_total", "completion") == before  # it wasn't completed


@pytest.mark.long
def test_a_replica_that_is_killed_costs_no_answer(served: Served) -> None:
    import ray

    expected = served.ask(body=LONG).json()["choices"][0]["text"]
    with ThreadPoolExecutor(4) as pool, streamed(served) as lines:
        [busy] = +served.now()
        whole = [pool.submit(served.ask, body=LONG) for _ in range(4)]
        until(lambda: served.now().total() >= 3)
        ray.kill(actor(f"#replica#{busy}"))
        last = [line for line in lines if line][-1].removeprefix("data: ")
        assert json.loads(last)["error"]["code"] == "replica_lost"
        for response in (future.result() for future in whole):
            assert response.status_code == 200
            assert response.json()["choices"][0]["text"] == expected
    until(lambda: len(served.now()) == 2)


@pytest.mark.long
def test_a_model_that_cannot_be_loaded_leaves_what_was_served(served: Served, home: Path) -> None:
    broken = home / "broken"
    shutil.copytree(served.settings.engine.model, broken)
    (broken / "model.safetensors").unlink()
    expected = served.ask().json()["choices"][0]["text"]
    wrong = replace(served.settings, engine=replace(served.settings.engine, model=str(broken)))
    with pytest.raises(FusionRAGError, match="safetensors"):
        deploying.deploy(wrong)
    until(lambda: served.ask().status_code == 200)
    assert served.ask().json()["choices"][0]["text"] == expected
    assert served.ask().json()["model"] == "first"


@pytest.mark.long
def test_another_model_and_store_replace_the_first_without_a_failure(
    served: Served, home: Path, model_dir: Path
) -> None:
    """By the command, on the cluster that runs; its end is the end of all."""
    import ray

    second = model(home / "second", model_dir, 1)
    with fill(second, home / "second-store") as other:
        texts = {"first": served.alone.answer(PROMPT).text, "second": other.answer(PROMPT).text}
    assert texts["first"] != texts["second"]
    seen: list[tuple[str, str]] = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            response = served.ask(body={"max_tokens": 256})
            assert response.status_code == 200, response.text
            seen.append((response.json()["model"], response.json()["choices"][0]["text"]))

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", "from fusionrag_integrations.cli import main; main()", "serve"]
    command += ["--store", str(home / "second-store"), "--ray", address, "--replicas", "2:3"]
    command += [
        "--replica-cpus",
        "0.1",
        "--port",
        str(served.port),
        "--keys",
        str(served.keys_file),
    ]
    with ThreadPoolExecutor(3) as pool:
        loads = [pool.submit(load) for _ in range(3)]
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            told = process.stdout.readline()
            assert told == f"The replicas answer at http://127.0.0.1:{served.port}/v1\n"
            count = len(seen)
            until(lambda: len(seen) > count + 3)
        finally:
            done.set()
        for each in loads:
            each.result()
    assert set(seen) == {("first", texts["first"]), ("second", texts["second"])}
    assert [name for name, _ in seen[-3:]] == ["second"] * 3
    assert not deploying.end(served.deployed)  # it isn't the one that runs any more
    with streamed(served) as lines:
        process.send_signal(signal.SIGTERM)
        until(lambda: served.ask().status_code == 503)
        assert served.ask().json()["error"]["code"] == "closing"
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait(PATIENCE) == 0
    assert not deploying.end(served.deployed)  # nothing is served any more
