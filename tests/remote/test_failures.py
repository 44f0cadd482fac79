"""What a server that fails, or is none, means to who asks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from time import monotonic
from typing import Any

import pytest

import fusionrag_integrations.langchain as lc
import fusionrag_integrations.llama_index as li
from fusionrag_integrations import FusionEngine
from fusionrag_integrations.errors import (
    FusionRAGError,
    InvalidInputError,
    NotAllowedError,
    PromptTooLongError,
    ServerBusyError,
    ServerError,
    ServerUnreachableError,
    StoreClosedError,
)
from tests.remote.loopback import LOOPBACK, Reply, Script, event, served

pytestmark = LOOPBACK

USAGE = {
    "prompt_tokens": 9,
    "reused_tokens": 4,
    "recomputed_tokens": 2,
    "fresh_tokens": 3,
    "missed_tokens": 0,
    "completion_tokens": 2,
    "token_layers": 30,
    "prefix_tokens": 0,
    "captured_tokens": 0,
    "history_tokens": 0,
    "recompute_ratio": 0.33,
}
TEXT = event(choices=[{"text": "At "}]), event(choices=[{"text": "noon."}])
LAST = event(
    choices=[{"text": "", "finish_reason": "stop"}],
    fusionrag={"finish_reason": "stop", "usage": USAGE},
)
DONE = b"data: [DONE]\n\n"
COMPLETE = Reply.stream(*TEXT, LAST, DONE)
KEY = "a-key-that-nobody-sees"

Ask = Callable[[lc.FusionRAGLLM], str]
each_way = pytest.mark.parametrize(
    "ask",
    [
        lambda llm: llm.invoke("When?"),
        lambda llm: asyncio.run(llm.ainvoke("When?")),
        lambda llm: "".join(llm.stream("When?")),
        lambda llm: asyncio.run(all_pieces(llm)),
    ],
    ids=["invoke", "ainvoke", "stream", "astream"],
)


async def all_pieces(llm: lc.FusionRAGLLM) -> str:
    return "".join([piece async for piece in llm.astream("When?")])


@contextmanager
def scripted(*replies: Reply, **fields: Any) -> Iterator[tuple[lc.FusionRAGLLM, Script]]:
    """A model over a server that gives these replies."""
    script = Script(list(replies))
    with served(script) as url, lc.FusionRAGLLM(base_url=url, **fields) as llm:
        yield llm, script


@each_way
def test_pieces_and_the_report(ask: Ask) -> None:
    with scripted(COMPLETE, max_tokens=7, ratio=0.5) as (llm, script):
        assert ask(llm) == "At noon."
    (path, headers, body) = script.asked[0]
    assert path == "/v1/completions"
    assert "authorization" not in headers
    assert (body["prompt"], body["max_tokens"], body["ratio"]) == ("When?", 7, 0.5)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply.error(400, "ratio is 2."), InvalidInputError),
        (Reply.error(400, "Too long.", "context_length_exceeded"), PromptTooLongError),
        (Reply.error(401, "This key is unknown."), NotAllowedError),
        (Reply.error(403, "Scope north isn't this key's."), NotAllowedError),
        (Reply.error(404, "There is no model of this name."), ServerError),
        (Reply.error(413, "The body is too large."), InvalidInputError),
        (Reply.error(500, "The server failed."), ServerError),
    ],
    ids=lambda given: given.status if isinstance(given, Reply) else given.__name__,
)
@each_way
def test_a_refusal_is_the_packages_error(ask: Ask, reply: Reply, kind: type[Exception]) -> None:
    with scripted(reply) as (llm, script), pytest.raises(kind) as caught:
        ask(llm)
    assert type(caught.value) is kind
    assert str(caught.value) in reply.parts[0].decode()
    assert len(script.asked) == 1


@each_way
def test_a_busy_server_is_asked_again_when_it_says(ask: Ask) -> None:
    date = format_datetime(datetime.now(UTC) - timedelta(seconds=5), usegmt=True)
    busy = [
        Reply.error(429, "Full.", **{"Retry-After": "0.3"}),
        Reply.error(503, "Closing.", **{"Retry-After": date}),
    ]
    with scripted(*busy, COMPLETE) as (llm, script):
        began = monotonic()
        assert ask(llm) == "At noon."
        assert monotonic() - began > 0.3
    assert len(script.asked) == 3


@each_way
def test_a_server_that_stays_busy(ask: Ask) -> None:
    with (
        scripted(Reply.error(429, "Full.", **{"Retry-After": "0"})) as (llm, script),
        pytest.raises(ServerBusyError, match="Full"),
    ):
        ask(llm)
    assert len(script.asked) == 4
    with (
        scripted(Reply.error(429, "Full.", **{"Retry-After": "3600"})) as (llm, script),
        pytest.raises(ServerBusyError),
    ):
        ask(llm)
    assert len(script.asked) == 1


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (Reply.stream(*TEXT, cut=True), ServerUnreachableError, "can't be reached, or broke off"),
        (Reply.stream(*TEXT), ServerUnreachableError, "broke off before its answer"),
        (Reply.stream(TEXT[0], b"data: {\n\n"), ServerError, "isn't in the form"),
        (
            Reply.stream(
                event(choices=[{"text": "", "finish_reason": "stop"}], fusionrag={"a": 1})
            ),
            ServerError,
            "isn't in the form",
        ),
        (Reply(200, [b"<html>"]), ServerUnreachableError, "text/event-stream"),
        (Reply(502, [b"<html>"]), ServerError, "answered by 502 Bad Gateway"),
        (
            Reply.stream(TEXT[0], event(error={"message": "No.", "type": "invalid_request_error"})),
            InvalidInputError,
            "No.",
        ),
        (
            Reply.stream(TEXT[0], event(error={"message": "Closing.", "code": "closing"})),
            ServerBusyError,
            "Closing.",
        ),
        (
            Reply.stream(TEXT[0], event(error={"message": "Failed.", "type": "server_error"})),
            ServerError,
            "Failed.",
        ),
    ],
    ids=["cut", "no end", "no JSON", "no report", "no stream", "502", "refused", "closing", "500"],
)
@each_way
def test_an_answer_that_goes_wrong(
    ask: Ask, reply: Reply, kind: type[Exception], said: str
) -> None:
    with scripted(reply) as (llm, _), pytest.raises(kind, match=said) as caught:
        ask(llm)
    assert type(caught.value) is kind


@each_way
def test_nobody_is_there(ask: Ask) -> None:
    with served(Script([Reply()])) as url:
        pass
    with (
        lc.FusionRAGLLM(base_url=url) as llm,
        pytest.raises(ServerUnreachableError, match=f"{url} can't be reached"),
    ):
        ask(llm)


def test_a_server_of_another_kind() -> None:
    other = Reply(200, [b'{"data": [{"id": "gpt"}]}'])
    with (
        served(Script([], other)) as url,
        lc.ChatFusionRAG(base_url=url) as chat,
        pytest.raises(ServerError, match="is it a FusionRAG server"),
    ):
        chat.bind_tools([])
    with (
        served(Script([], Reply(200, [b"<html>"]))) as url,
        li.FusionRAGLLM(base_url=url) as llm,
        pytest.raises(ServerError, match="gave no JSON"),
    ):
        _ = llm.metadata


@pytest.mark.parametrize("given", [True, False], ids=["given", "by environment"])
def test_the_key_is_sent_and_not_shown(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not given:
        monkeypatch.setenv("FUSIONRAG_API_KEY", KEY)
    with scripted(COMPLETE, **({"api_key": KEY} if given else {})) as (llm, script):
        llm.invoke("When?")
        shown = [repr(llm), str(llm), llm.model_dump_json(), str(llm.identity())]
    assert script.asked[0][1]["authorization"] == f"Bearer {KEY}"
    assert not any(KEY in text for text in shown)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_an_address_may_be_as_openais_clients_take_it(suffix: str) -> None:
    script = Script([COMPLETE])
    with served(script) as url, lc.FusionRAGLLM(base_url=url + suffix) as llm:
        llm.invoke("When?")
    assert script.asked[0][0] == "/v1/completions"


MAKES: list[Any] = [
    lc.FusionRAGLLM,
    lc.ChatFusionRAG,
    lc.FusionKVRetriever,
    li.FusionRAGLLM,
    li.FusionKVRetriever,
]
each_component = pytest.mark.parametrize(
    "make", MAKES, ids=lambda make: f"{make.__module__.split('.')[1]}.{make.__name__}"
)


@each_component
def test_what_no_component_takes(make: Any, engine: FusionEngine) -> None:
    for url in (
        "",
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://host?a=1",
        "http://host:99999",
        "x y",
    ):
        with pytest.raises(InvalidInputError, match="base_url is"):
            make(base_url=url)
    with pytest.raises(InvalidInputError, match="base_url is 5; give a string"):
        make(base_url=5)
    with pytest.raises(InvalidInputError, match="holds characters that no key has") as caught:
        make(base_url="http://host", api_key="kéy")
    assert "kéy" not in str(caught.value)
    with pytest.raises(InvalidInputError, match="a server's base_url"):
        make(engine=engine, base_url="http://host")
    with pytest.raises(InvalidInputError, match="a server's base_url"):
        make()
    with pytest.raises(InvalidInputError, match="An api_key is for a server"):
        make(engine=engine, api_key=KEY)


@each_way
def test_a_closed_component_says_so(ask: Ask) -> None:
    with scripted(COMPLETE) as (llm, _):
        ask(llm)
        llm.close()
        llm.close()
        with pytest.raises(StoreClosedError, match="was closed here"):
            ask(llm)


def test_closing_a_model_leaves_a_given_engine_open(engine: FusionEngine) -> None:
    with lc.ChatFusionRAG(engine=engine, max_tokens=2) as chat:
        pass
    assert chat.invoke("When?").content is not None


def test_a_stream_isnt_read_in_both_ways() -> None:
    from fusionrag_integrations.adapters.remote import RemoteEngine

    async def both(first: Any) -> None:
        with pytest.raises(FusionRAGError, match="read it on in that way"):
            await anext(first)

    with served(Script([COMPLETE])) as url, RemoteEngine(url) as engine:
        stream = engine.stream("When?")
        assert next(stream) == "At "
        with pytest.raises(FusionRAGError, match="once its stream has been read to the end"):
            _ = stream.answer
        asyncio.run(both(stream))
        assert stream.read().text == "At noon."
        assert stream.answer.usage.reused_tokens == 4
        assert list(stream) == []


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda llm: llm.invoke("Where \ud800?"), r"half a surrogate pair, '\\ud800'"),
        (lambda llm: asyncio.run(llm.ainvoke("Where \ud800?")), "half a surrogate pair"),
        (lambda llm: "".join(llm.stream("Where \ud800?")), "half a surrogate pair"),
        (lambda llm: llm.get_num_tokens("\udfff"), "half a surrogate pair"),
        (lambda llm: llm.invoke("Where?", seed=10**5000), "must fit 64 bits"),
    ],
)
def test_what_json_has_no_form_for(ask: Callable[[lc.FusionRAGLLM], Any], message: str) -> None:
    with (
        served(Script([COMPLETE])) as url,
        pytest.raises(InvalidInputError, match=message),
    ):
        ask(lc.FusionRAGLLM(base_url=url))


def test_numbers_that_json_does_not_have() -> None:
    with served(Script([COMPLETE])) as url:
        retriever = lc.FusionKVRetriever(base_url=url, filter={"year": float("nan")})
        with pytest.raises(InvalidInputError, match="can't be sent to a server as JSON"):
            retriever.invoke("Where?")
