"""What is told of requests afterwards: logs and metrics, and no text of anybody's."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.server import create_app
from fusionrag_integrations.server.records import JsonLines
from tests.conftest import town
from tests.server.conftest import Running, running
from tests.waiting import until

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
PROMPT = f"{town(0).text}\n\nWhich house?"


@pytest.fixture
def fresh(filled: FusionEngine) -> Iterator[Running]:
    """A server that has answered nothing."""
    with running(filled) as server:
        yield server


def metrics(server: Running) -> dict[str, float]:
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    rows = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in rows}


def complete(server: Running, **more: Any) -> Any:
    body = {"prompt": PROMPT, "max_tokens": 5, **more}
    with server.client() as client:
        return client.post("/v1/completions", json=body)


def test_metrics_count_requests_tokens_and_times(fresh: Running) -> None:
    usage = complete(fresh).json()["fusionrag"]["usage"]
    complete(fresh, stream=True)
    complete(fresh, n=2)
    found = metrics(fresh)
    name = 'fusionrag_requests_total{endpoint="/v1/completions",status="%d"}'
    assert (found[name % 200], found[name % 400]) == (2, 1)
    for kind in ("reused", "recomputed", "fresh", "completion"):
        assert found[f'fusionrag_tokens_total{{kind="{kind}"}}'] == 2 * usage[f"{kind}_tokens"]
    assert found["fusionrag_ttft_seconds_count"] == 2
    assert found["fusionrag_time_between_tokens_seconds_count"] > 0
    assert found['fusionrag_requests_now{state="answering"}'] == 0
    assert found['fusionrag_requests_now{state="under_way"}'] == 1
    assert found['fusionrag_kv_hits_total{tier="host"}'] > 0
    assert found['fusionrag_kv_bytes{tier="disk"}'] > 0


def test_two_servers_count_apart(fresh: Running, filled: FusionEngine) -> None:
    complete(fresh)
    with running(filled) as other:
        assert metrics(other)["fusionrag_ttft_seconds_count"] == 0
    assert metrics(fresh)["fusionrag_ttft_seconds_count"] == 1


def test_paths_that_are_none_are_one_in_metrics(fresh: Running) -> None:
    with fresh.client() as client:
        for path in ("/a", "/b"):
            client.get(path)
    assert metrics(fresh)['fusionrag_requests_total{endpoint="",status="404"}'] == 2


def test_a_request_is_one_line_of_json(fresh: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    answers = [complete(fresh), complete(fresh, stream=True), complete(fresh, ratio=7)]
    until(lambda: len([r for r in caplog.records if r.message == "request"]) >= 3)
    lines = [JsonLines().format(r) for r in caplog.records if r.message == "request"]
    whole, stream, wrong = map(json.loads, lines)
    usage = answers[0].json()["fusionrag"]["usage"]
    assert whole["request_id"] == answers[0].headers["x-request-id"]
    assert whole["status"] == 200
    assert whole["endpoint"] == "/v1/completions"
    assert whole["caller"] == "anyone"
    assert whole["finish_reason"] == "length"
    for kind in ("prompt", "reused", "recomputed", "completion"):
        assert whole[f"{kind}_tokens"] == stream[f"{kind}_tokens"] == usage[f"{kind}_tokens"]
    assert 0 <= whole["queued_ms"] <= whole["ttft_ms"] <= whole["duration_ms"]
    assert (whole["stream"], stream["stream"]) == (False, True)
    assert (wrong["status"], wrong["ttft_ms"]) == (400, None)
    said = "\n".join(JsonLines().format(record) for record in caplog.records)
    assert "town" not in said.lower()
    assert answers[0].json()["choices"][0]["text"] not in said


def test_an_exception_is_logged_without_its_message() -> None:
    try:
        raise ValueError("secret")
    except ValueError as error:
        given = (ValueError, error, error.__traceback__)
        record = logging.LogRecord("a", logging.ERROR, "b", 1, "%s failed", ("it",), given)
    line = json.loads(JsonLines().format(record))
    assert (line["message"], line["error"], line["level"]) == ("it failed", "ValueError", "error")
    assert "secret" not in str(line)


def test_an_application_of_ones_own_shows_its_service(filled: FusionEngine) -> None:
    assert create_app(filled).state.service.engine is filled
