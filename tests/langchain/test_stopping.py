"""Work ends with the answer: at a stop string, when a stream is closed or a task cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.langchain import ChatFusionRAG, FusionKVRetriever, FusionRAGLLM
from tests.langchain.chains import WORDS, join
from tests.steps import (
    PATIENCE,
    Steps,
    kv_in_use,
    steps_until,
    until_kv_is_free,
    wait_until_kv_is_free,
)

QUESTION = "Where is house 15 of town number 2?"
MAX_TOKENS = 40

each_model = pytest.mark.parametrize("kind", [FusionRAGLLM, ChatFusionRAG])


@pytest.fixture(scope="module")
def prompt(engine: FusionEngine) -> str:
    context = join(FusionKVRetriever(engine=engine, k=3).invoke(QUESTION))
    return WORDS.format(context=context, question=QUESTION)


@pytest.fixture(scope="module")
def pieces(engine: FusionEngine, prompt: str) -> list[str]:
    return list(engine.stream(prompt, AnswerSettings(max_tokens=MAX_TOKENS)))


@pytest.fixture(scope="module")
def token_ids(engine: FusionEngine, prompt: str) -> tuple[int, ...]:
    return engine.answer(prompt, AnswerSettings(max_tokens=MAX_TOKENS)).token_ids


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def text_of(said: Any) -> str:
    return said.text if isinstance(said, BaseMessage) else said


def stops(pieces: list[str]) -> Iterator[str]:
    """A string inside of a piece, and one of the ends of two or three, that come up once.

    Of whole characters: that bytes are none is certain only a token later.
    """
    whole = "".join(pieces)
    long = next(p.strip() for p in pieces[2:] if len(p.strip()) > 1 and whole.count(p.strip()) == 1)
    yield long
    for count in (2, 3):
        for at in range(2, len(pieces) - count):
            stop = pieces[at][-1] + "".join(pieces[at + 1 : at + count - 1])
            stop += pieces[at + count - 1][0]
            if whole.count(stop) == 1 and "\ufffd" not in stop:
                yield stop
                break


async def asked(llm: Any, way: str, prompt: str, **changes: Any) -> str:
    if way == "invoke":
        return text_of(llm.invoke(prompt, **changes))
    if way == "ainvoke":
        return text_of(await llm.ainvoke(prompt, **changes))
    if way == "stream":
        return "".join(map(text_of, llm.stream(prompt, **changes)))
    return "".join([text_of(piece) async for piece in llm.astream(prompt, **changes)])


@each_model
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["in a piece", "over two", "over three"])
@pytest.mark.asyncio
async def test_a_stop_string_ends_decode_with_its_last_token(
    engine: FusionEngine,
    prompt: str,
    pieces: list[str],
    token_ids: tuple[int, ...],
    steps: Steps,
    kind: Any,
    way: str,
    which: int,
) -> None:
    stop = list(stops(pieces))[which]
    llm = kind(engine=engine, max_tokens=MAX_TOKENS)
    whole = "".join(pieces)
    assert await asked(llm, way, prompt, stop=[stop]) == whole[: whole.index(stop)]
    assert steps.count == steps_until(engine, token_ids, stop) < len(token_ids) - 1
    assert kv_in_use(engine) == 0


@each_model
def test_a_stream_that_is_closed_decodes_nothing_more_and_frees_its_kv(
    engine: FusionEngine, prompt: str, steps: Steps, kind: Any
) -> None:
    steps.hold_at(5)
    stream = kind(engine=engine, max_tokens=MAX_TOKENS).stream(prompt)
    next(stream)
    assert steps.is_held.wait(PATIENCE)
    assert kv_in_use(engine) == 3
    stream.close()
    steps.go_on()
    wait_until_kv_is_free(engine)
    assert list(stream) == []
    assert steps.count == 5


@each_model
@pytest.mark.asyncio
async def test_so_does_an_asynchronous_one(
    engine: FusionEngine, prompt: str, steps: Steps, kind: Any
) -> None:
    steps.hold_at(5)
    stream: Any = kind(engine=engine, max_tokens=MAX_TOKENS).astream(prompt)
    await anext(stream)
    await steps.held()
    assert kv_in_use(engine) == 3
    await stream.aclose()
    steps.go_on()
    await until_kv_is_free(engine)
    assert steps.count == 5


def chain_of(engine: FusionEngine, kind: Any) -> Runnable[str, Any]:
    return (
        {"context": FusionKVRetriever(engine=engine, k=3) | join, "question": RunnablePassthrough()}
        | PromptTemplate.from_template(WORDS)
        | kind(engine=engine, max_tokens=MAX_TOKENS)
    )


parsed = pytest.param(
    StrOutputParser(),
    marks=pytest.mark.xfail(
        strict=True,
        reason="LangChain's parsers read their input to the end when they are closed, to trace it.",
    ),
    id="parser",
)


@each_model
@pytest.mark.parametrize("after", [pytest.param(None, id="model"), parsed])
def test_a_chain_that_is_closed_passes_it_on(
    engine: FusionEngine, steps: Steps, kind: Any, after: Any
) -> None:
    chain = chain_of(engine, kind)
    steps.hold_at(5)
    stream: Any = (chain if after is None else chain | after).stream(QUESTION)
    assert next(stream) is not None
    assert steps.is_held.wait(PATIENCE)
    assert kv_in_use(engine) == 3
    threading.Timer(0.5, steps.go_on).start()  # what reads to the end waits for it
    stream.close()
    wait_until_kv_is_free(engine)
    assert steps.count == 5


@each_model
@pytest.mark.parametrize("way", ["ainvoke", "astream"])
@pytest.mark.asyncio
async def test_a_chain_that_is_cancelled_does_so_behind_a_parser_too(
    engine: FusionEngine, steps: Steps, kind: Any, way: str
) -> None:
    chain = chain_of(engine, kind) | StrOutputParser()
    steps.hold_at(3)
    called = chain.ainvoke(QUESTION) if way == "ainvoke" else _read(chain.astream(QUESTION))
    task = asyncio.create_task(called)
    await steps.held()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await steps.cancelled()
    steps.go_on()
    await until_kv_is_free(engine)
    assert steps.count == 3


async def _read(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


@each_model
@pytest.mark.parametrize("way", ["ainvoke", "abatch", "astream", "astream_events"])
@pytest.mark.parametrize("held_at", [0, 3])
@pytest.mark.asyncio
async def test_a_cancelled_task_ends_after_the_step_under_way(
    engine: FusionEngine, prompt: str, steps: Steps, kind: Any, way: str, held_at: int
) -> None:
    llm = kind(engine=engine, max_tokens=MAX_TOKENS)
    calls = {
        "ainvoke": lambda: llm.ainvoke(prompt),
        "abatch": lambda: llm.abatch([prompt]),
        "astream": lambda: _read(llm.astream(prompt)),
        "astream_events": lambda: _read(llm.astream_events(prompt, version="v2")),
    }
    await steps.cancel_at(held_at, calls[way](), engine)
    assert steps.count == held_at


@each_model
@pytest.mark.asyncio
async def test_a_timeout_is_a_cancelled_task(
    engine: FusionEngine, prompt: str, steps: Steps, kind: Any
) -> None:
    steps.hold_at(1)
    llm = kind(engine=engine, max_tokens=MAX_TOKENS)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await llm.ainvoke(prompt)
    steps.go_on()
    await until_kv_is_free(engine)
    assert steps.count <= 1
    assert text_of(await llm.ainvoke(prompt)) == text_of(llm.invoke(prompt))


@pytest.mark.asyncio
async def test_callbacks_hear_of_a_cancelled_stream_as_of_an_error(
    engine: FusionEngine, prompt: str, steps: Steps
) -> None:
    heard: list[BaseException] = []

    class Listening(AsyncCallbackHandler):
        async def on_llm_error(self, error: BaseException, **_: Any) -> None:
            heard.append(error)

    llm = ChatFusionRAG(engine=engine, max_tokens=MAX_TOKENS)
    await steps.cancel_at(
        2, _read(llm.astream(prompt, config={"callbacks": [Listening()]})), engine
    )
    assert [type(error) for error in heard] == [asyncio.CancelledError]
