"""Answers as LlamaIndex's responses, whole and streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
)

from fusionrag_integrations.adapters.base import Answered, Stream

Response = TypeVar("Response")


def completion_response(
    text: str, delta: str | None, answer: Answered | None
) -> CompletionResponse:
    """delta: the newest piece of a stream. answer: once it is complete."""
    return CompletionResponse(text=text, delta=delta, **_report(answer))


def chat_response(text: str, delta: str | None, answer: Answered | None) -> ChatResponse:
    """The same as a message of the assistant's."""
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta, **_report(answer))


def _report(answer: Answered | None) -> dict[str, Any]:
    if answer is None:
        return {}
    prompt, completion = answer.usage.prompt_tokens, answer.usage.completion_tokens
    counts = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    return {"raw": answer.report(), "additional_kwargs": counts}


def streamed(
    stream: Stream, respond: Callable[[str, str, Answered | None], Response]
) -> Generator[Response, None, None]:
    """Responses with the text so far and the newest piece; the last one has the answer's report."""
    text = ""
    with closing(stream):
        for piece in stream:
            text += piece
            yield respond(text, piece, None)
        yield respond(text, "", stream.answer)


async def astreamed(
    stream: Stream, respond: Callable[[str, str, Answered | None], Response]
) -> AsyncGenerator[Response, None]:
    """Like `streamed`, without blocking the event loop."""
    text = ""
    async with aclosing(stream):
        async for piece in stream:
            text += piece
            yield respond(text, piece, None)
        yield respond(text, "", stream.answer)
