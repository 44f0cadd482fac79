"""The ways to ask: both frameworks' components and the engine, in a thread and in an event loop.

Each takes an engine, a prompt and settings, and gives the text of the answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from llama_index.core.llms import ChatMessage

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations import langchain as lc
from fusionrag_integrations import llama_index as li

Settings = dict[str, Any]
Way = Callable[[FusionEngine, str, Settings], str]
AsyncWay = Callable[[FusionEngine, str, Settings], Awaitable[str]]


def joined(pieces: Any) -> str:
    return "".join(str(piece) for piece in pieces)


async def gathered(pieces: AsyncIterator[Any]) -> str:
    return "".join([str(piece) async for piece in pieces])


async def deltas(responses: Awaitable[AsyncIterator[Any]]) -> str:
    return "".join([response.delta or "" async for response in await responses])


async def texts(messages: AsyncIterator[Any]) -> str:
    return "".join([str(message.text) async for message in messages])


async def read(engine: FusionEngine, prompt: str, settings: Settings) -> str:
    return (await engine.stream(prompt, AnswerSettings(**settings)).aread()).text


async def text_of(response: Awaitable[Any]) -> str:
    return str((await response).text)


async def content_of(response: Awaitable[Any]) -> str:
    return str((await response).message.content)


def chat(prompt: str) -> list[ChatMessage]:
    return [ChatMessage(content=prompt)]


WAYS: dict[str, Way] = {
    "engine.answer": lambda e, p, s: e.answer(p, AnswerSettings(**s)).text,
    "engine.stream": lambda e, p, s: joined(e.stream(p, AnswerSettings(**s))),
    "langchain llm": lambda e, p, s: lc.FusionRAGLLM(engine=e, **s).invoke(p),
    "langchain llm stream": lambda e, p, s: joined(lc.FusionRAGLLM(engine=e, **s).stream(p)),
    "langchain chat": lambda e, p, s: str(lc.ChatFusionRAG(engine=e, **s).invoke(p).text),
    "langchain chat stream": lambda e, p, s: joined(
        message.text for message in lc.ChatFusionRAG(engine=e, **s).stream(p)
    ),
    "llama_index complete": lambda e, p, s: li.FusionRAGLLM(engine=e, **s).complete(p).text,
    "llama_index stream": lambda e, p, s: joined(
        response.delta for response in li.FusionRAGLLM(engine=e, **s).stream_complete(p)
    ),
    "llama_index chat": lambda e, p, s: str(
        li.FusionRAGLLM(engine=e, **s).chat(chat(p)).message.content
    ),
}
ASYNC_WAYS: dict[str, AsyncWay] = {
    "aread": read,
    "async for": lambda e, p, s: gathered(e.stream(p, AnswerSettings(**s))),
    "langchain ainvoke": lambda e, p, s: lc.FusionRAGLLM(engine=e, **s).ainvoke(p),
    "langchain astream": lambda e, p, s: gathered(lc.FusionRAGLLM(engine=e, **s).astream(p)),
    "langchain chat ainvoke": lambda e, p, s: text_of(lc.ChatFusionRAG(engine=e, **s).ainvoke(p)),
    "langchain chat astream": lambda e, p, s: texts(lc.ChatFusionRAG(engine=e, **s).astream(p)),
    "llama_index acomplete": lambda e, p, s: text_of(li.FusionRAGLLM(engine=e, **s).acomplete(p)),
    "llama_index astream": lambda e, p, s: deltas(
        li.FusionRAGLLM(engine=e, **s).astream_complete(p)
    ),
    "llama_index achat": lambda e, p, s: content_of(li.FusionRAGLLM(engine=e, **s).achat(chat(p))),
}
