"""LangChain's messages as this package's, and answers as LangChain's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from fusionrag_integrations.adapters.base import Answered, Stream
from fusionrag_integrations.adapters.tool_calls import PlainText, parse_output
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt.messages import Message
from fusionrag_integrations.serving.settings import AnswerSettings

_ROLES = {"system": "system", "human": "user", "ai": "assistant", "tool": "tool"}
# Content of a model's message beside text: calls are in `tool_calls`, and reasoning is dropped.
_BESIDE_TEXT = {
    *("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call"),
    *("reasoning", "thinking", "redacted_thinking"),
}


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """LangChain's messages as chat templates take them: system, user, assistant and tool, as text.

    Raises `InvalidInputError` for other kinds of message, and for content other than text.
    """
    converted: list[Message] = []
    for message in messages:
        role = _ROLES.get(message.type.removesuffix("MessageChunk").lower())
        if role is None:
            raise InvalidInputError(
                f"Messages of type {message.type!r} are not supported; give "
                f"{', '.join(_ROLES)} messages."
            )
        known = {"text"} | (_BESIDE_TEXT if role == "assistant" else set())
        blocks = message.content if isinstance(message.content, list) else []
        if any(isinstance(block, dict) and block.get("type") not in known for block in blocks):
            raise InvalidInputError(
                f"A {message.type} message holds content other than text; give text alone."
            )
        template_message: Message = {"role": role, "content": str(message.text)}
        if isinstance(message, AIMessage) and message.tool_calls:
            template_message["tool_calls"] = [
                {
                    "type": "function",
                    "id": call["id"],
                    "function": {"name": call["name"], "arguments": call["args"]},
                }
                for call in message.tool_calls
            ]
        if isinstance(message, ToolMessage):
            template_message["tool_call_id"] = message.tool_call_id
            template_message["name"] = message.name or ""
        converted.append(template_message)
    return converted


def to_message(answer: Answered, settings: AnswerSettings, model_name: str) -> AIMessage:
    """An answer, with the tool calls that it contains."""
    parsed = parse_output(answer.text, settings.tools)
    return AIMessage(
        content=parsed.text,
        tool_calls=parsed.calls,
        invalid_tool_calls=parsed.invalid,
        usage_metadata=_usage(answer),
        response_metadata=_metadata(answer, model_name),
    )


def to_chunk(text: str) -> ChatGenerationChunk:
    """A piece of a stream."""
    return ChatGenerationChunk(message=AIMessageChunk(content=text))


def last_chunks(stream: Stream, plain: PlainText, model_name: str) -> Iterator[ChatGenerationChunk]:
    """The end of a stream that was read: text that was held back, tool calls, and usage."""
    parsed = parse_output(stream.answer.text, plain.tools)
    calls = [
        tool_call_chunk(name=call["name"], args=args, id=call["id"], index=number)
        for number, (call, args) in enumerate(parsed.with_arguments())
    ]
    rest = parsed.text[plain.length :]
    if rest or calls:
        message = AIMessageChunk(content=rest, tool_call_chunks=calls)
        yield ChatGenerationChunk(message=message)
    yield ChatGenerationChunk(
        message=AIMessageChunk(
            content="",
            usage_metadata=_usage(stream.answer),
            response_metadata=_metadata(stream.answer, model_name),
            chunk_position="last",
        )
    )


def _metadata(answer: Answered, model_name: str) -> dict[str, Any]:
    return {"model_name": model_name} | answer.report()


def _usage(answer: Answered) -> UsageMetadata:
    usage = answer.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.reused_tokens),
    )
