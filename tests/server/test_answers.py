"""Answers over HTTP: those of the engine, in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fusionrag_integrations import AnswerSettings, FusionEngine
from tests.conftest import nested, town
from tests.server.conftest import Running

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PROMPT = f"{town(0).text}\n\nWhich house?"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
Json = dict[str, Any]


def ask(served: Running, path: str = CHAT, **body: Any) -> Json:
    asked = {"messages": MESSAGES} if path == CHAT and "messages" not in body else {}
    with served.client() as client:
        response = client.post(path, json={"max_tokens": 6, **asked, **body})
    assert response.status_code == 200, response.text
    found: Json = response.json()
    return found


def refused(served: Running, path: str = CHAT, **body: Any) -> Json:
    asked = {"messages": MESSAGES} if path == CHAT and "messages" not in body else {}
    with served.client() as client:
        response = client.post(path, json={**asked, **body})
    assert response.status_code == 400, response.text
    error: Json = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


def chunks(served: Running, path: str = CHAT, **body: Any) -> Iterator[Json]:
    asked = {"messages": MESSAGES} if path == CHAT else {}
    given = {"max_tokens": 6, "stream": True, **asked, **body}
    with served.client() as client, client.stream("POST", path, json=given) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return map(json.loads, lines)


def test_a_chat_completion_is_the_engines_answer(served: Running, filled: FusionEngine) -> None:
    found = ask(served)
    own = filled.answer(MESSAGES, AnswerSettings(max_tokens=6))  # type: ignore[arg-type]
    assert found["object"] == "chat.completion"
    assert found["model"] == filled.model_name
    [choice] = found["choices"]
    assert choice["message"]["content"] == own.text
    assert choice["finish_reason"] == own.finish_reason == "length"
    assert own.usage.reused_tokens > 0
    assert found["usage"] == {
        "prompt_tokens": own.usage.prompt_tokens,
        "completion_tokens": 6,
        "total_tokens": own.usage.prompt_tokens + 6,
        "prompt_tokens_details": {"cached_tokens": own.usage.reused_tokens},
    }
    report = own.report()
    assert found["fusionrag"].keys() == report.keys()
    assert found["fusionrag"]["usage"] == report["usage"]


def test_a_completion_is_the_engines_answer(served: Running, filled: FusionEngine) -> None:
    found = ask(served, COMPLETIONS, prompt=PROMPT)
    assert found["object"] == "text_completion"
    own = filled.answer(PROMPT, AnswerSettings(max_tokens=6))
    assert found["choices"][0]["text"] == own.text
    assert ask(served, COMPLETIONS, prompt=[PROMPT])["choices"][0]["text"] == own.text


def test_a_stream_holds_the_same(served: Running) -> None:
    whole = ask(served)
    *pieces, last = chunks(served)
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    texts = [chunk["choices"][0]["delta"]["content"] for chunk in pieces]
    assert "".join(texts) == whole["choices"][0]["message"]["content"]
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["fusionrag"]["usage"] == whole["fusionrag"]["usage"]
    assert not any("usage" in chunk or "fusionrag" in chunk for chunk in pieces)
    assert len({chunk["id"] for chunk in [*pieces, last]}) == 1
    assert {chunk["object"] for chunk in pieces} == {"chat.completion.chunk"}


def test_a_stream_of_a_completion(served: Running) -> None:
    *pieces, last = chunks(served, COMPLETIONS, prompt=PROMPT)
    text = "".join(chunk["choices"][0]["text"] for chunk in pieces)
    assert text == ask(served, COMPLETIONS, prompt=PROMPT)["choices"][0]["text"]
    assert last["choices"][0]["finish_reason"] == "length"


def test_usage_in_a_stream_where_asked(served: Running) -> None:
    *pieces, last = chunks(served, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"] == ask(served)["usage"]
    assert {chunk["usage"] for chunk in pieces} == {None}
    assert refused(served, stream_options={"include_usage": True})["param"] == "stream_options"


def test_settings_are_the_engines(served: Running, filled: FusionEngine) -> None:
    given: Json = {"temperature": 1.5, "seed": 3, "top_p": 0.9, "top_k": 40, "ratio": 0.5}
    found = ask(served, COMPLETIONS, prompt=PROMPT, **given)
    own = filled.answer(PROMPT, AnswerSettings(max_tokens=6, **given))
    assert found["choices"][0]["text"] == own.text
    assert found["fusionrag"]["usage"]["recompute_ratio"] == pytest.approx(0.5, abs=0.02)
    full = ask(served, kv="none")
    assert full["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert "kv='none'" in full["fusionrag"]["full_reason"]


def test_both_names_of_the_longest_answer(served: Running) -> None:
    with served.client() as client:
        body: Json = {"messages": MESSAGES, "max_completion_tokens": 2}
        assert client.post(CHAT, json=body).json()["usage"]["completion_tokens"] == 2
    error = refused(served, max_completion_tokens=2, max_tokens=2)
    assert "are the same" in error["message"]


@pytest.mark.parametrize("several", [False, True])
def test_an_answer_ends_at_a_stop_string(served: Running, several: bool) -> None:
    text = ask(served, max_tokens=12)["choices"][0]["message"]["content"]
    stop = text[3:6]
    found = ask(served, max_tokens=12, stop=["never said", stop] if several else stop)
    [choice] = found["choices"]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_parts_of_text_are_one_text(served: Running) -> None:
    half = len(PROMPT) // 2
    parts = [{"type": "text", "text": text} for text in (PROMPT[:half], PROMPT[half:])]
    messages = [MESSAGES[0], {"role": "user", "content": parts}]
    assert ask(served, messages=messages)["choices"] == ask(served)["choices"]
    developer = [{**MESSAGES[0], "role": "developer"}, MESSAGES[1]]
    assert ask(served, messages=developer)["choices"] == ask(served)["choices"]


def test_chunk_ids_name_chunks_of_the_prompt(served: Running, filled: FusionEngine) -> None:
    ids = filled.store.catalog.chunks.ids()
    assert ask(served, chunk_ids=[*ids, "unknown"])["choices"] == ask(served)["choices"]
    assert refused(served, chunk_ids="one")["param"] == "chunk_ids"


def test_fields_of_openais_that_change_nothing(served: Running) -> None:
    neutral: Json = {
        "user": "u",
        "n": 1,
        "store": False,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logprobs": False,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "service_tier": "auto",
        "tool_choice": "none",
        "seed": None,
    }
    assert ask(served, **neutral)["choices"] == ask(served)["choices"]


def test_a_completion_may_say_that_no_tool_is_called(served: Running) -> None:
    body: Json = {"prompt": "Which house?", "max_tokens": 2}
    with served.client() as client:
        one, other = (
            client.post("/v1/completions", json=body | more).json()
            for more in ({}, {"tool_choice": "none"})
        )
        refused = client.post("/v1/completions", json=body | {"tool_choice": "auto"}).json()
    assert one["choices"] == other["choices"]
    assert refused["error"]["message"] == "tool_choice is given without tools."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", True),
        ("logprobs", True),
        ("response_format", {"type": "json_object"}),
        ("frequency_penalty", 0.5),
        ("logit_bias", {"5": 1}),
        ("reasoning_effort", "high"),
        ("tool_choice", "auto"),
    ],
)
def test_fields_that_would_change_the_answer_are_refused(
    served: Running, name: str, value: object
) -> None:
    error = refused(served, **{name: value})
    assert error["param"] == name
    assert name in error["message"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"raito": 0.5}, "Did you mean 'ratio'?"),
        ({"ratio": 2}, "ratio is 2.0"),
        ({"ratio": "0.5"}, "ratio: "),
        ({"selector": "guess"}, "guess"),
        ({"temperature": -1}, "temperature is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "all empty"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "a", "mood": 1}]}, "messages.0.mood"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "'image_url'"),
        ({"messages": "hello"}, "messages: "),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"stop": [""]}, "non-empty"),
    ],
)
def test_what_is_wrong_is_named(served: Running, body: Json, told: str) -> None:
    assert told in refused(served, **body)["message"]
    assert told in refused(served, **body, stream=True)["message"]


@pytest.mark.parametrize("content", [b"{", b"[]", b'"text"', b"", b'{"prompt": "\\ud800"}'])
def test_bodies_that_are_no_request(served: Running, content: bytes) -> None:
    with served.client() as client:
        headers = {"Content-Type": "application/json"}
        response = client.post(COMPLETIONS, content=content, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_nested_too_deep(served: Running) -> None:
    deep = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with served.client() as client:
        headers = {"Content-Type": "application/json"}
        assert client.post(COMPLETIONS, content=deep, headers=headers).status_code == 400
        parameters = {"within": nested(200)}
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        body = {"messages": MESSAGES, "tools": [tool], "max_tokens": 1}
        assert client.post(CHAT, json=body).status_code in (200, 400)


def test_a_body_without_a_content_type_is_no_json(served: Running) -> None:
    """A web page may send one to a server on its reader's machine, and nothing else."""
    with served.client() as client:
        response = client.post(COMPLETIONS, content=json.dumps({"prompt": PROMPT}))
        assert "Content-Type" in response.json()["error"]["message"]
        assert response.status_code == 400


def test_a_prompt_that_is_too_long(served: Running) -> None:
    for stream in (False, True):
        error = refused(served, COMPLETIONS, prompt="one two " * 3000, stream=stream)
        assert error["code"] == "context_length_exceeded"


def test_another_model_and_paths_that_are_none(served: Running, filled: FusionEngine) -> None:
    with served.client() as client:
        response = client.post(COMPLETIONS, json={"prompt": PROMPT, "model": "gpt"})
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        body = {"prompt": PROMPT, "model": filled.model_name, "max_tokens": 1}
        assert client.post(COMPLETIONS, json=body).status_code == 200
        assert client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
        assert client.put("/v1/models").status_code == 405
        assert client.get("/docs").status_code == 404


def test_what_fails_inside_is_not_told(
    served: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*given: object) -> None:
        raise RuntimeError(f"secret {given}")

    monkeypatch.setattr(FusionEngine, "stream", fail)
    with served.client() as client:
        response = client.post(COMPLETIONS, json={"prompt": PROMPT})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text
    [logged] = [record for record in caplog.records if record.message == "failure"]
    assert logged.fields["error"] == "RuntimeError"  # type: ignore[attr-defined]
    assert "secret" not in caplog.text
