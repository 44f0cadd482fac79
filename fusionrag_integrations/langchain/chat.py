"""ChatFusionRAG: LangChain's chat model over an engine, with the tokenizer's own template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from fusionrag_integrations.answer import Answer
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.langchain.tool_calls import Said, read_tool_calls
from fusionrag_integrations.options import AnswerOptions
from fusionrag_integrations.types import Message

_ROLES = {"system": "system", "human": "user", "ai": "assistant", "tool": "tool"}


class ChatFusionRAG(AnswerOptions, BaseChatModel):
    """Answers chat messages from the KV of the chunks that stand in them.

    `usage_metadata` counts reused tokens as `cache_read`; `response_metadata` tells the rest, as
    `FusionRAGLLM` does in its generation info. Every setting can be given per call.

        chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | chat
    """

    @property
    def _llm_type(self) -> str:
        return "fusionrag-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.identity()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        settings = self.settings(stop, kwargs)
        answer = self.engine.answer(to_messages(messages), settings)
        said = read_tool_calls(answer.text, settings.tools)
        message = AIMessage(
            content=said.text,
            tool_calls=said.calls,
            invalid_tool_calls=said.invalid,
            usage_metadata=_usage(answer),
            response_metadata=self._metadata(answer),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        settings = self.settings(stop, kwargs)
        stream = self.engine.stream(to_messages(messages), settings)
        pieces = []
        for piece in stream:
            pieces.append(piece)
            if settings.tools:  # what is a call shows when all is said
                continue
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        if settings.tools:
            chunk = _with_calls(read_tool_calls("".join(pieces), settings.tools))
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                usage_metadata=_usage(stream.answer),
                response_metadata=self._metadata(stream.answer),
                chunk_position="last",
            )
        )

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call, told of them by its own chat template.

        tool_choice: "auto"; "none"; a tool's name, so that it is told of no other; "any". Nothing
        makes a model call a tool: with "any" or a name an answer may come all the same.

        Raises `InvalidInputError` where the template has no words for tools, or no tool has the
        name.
        """
        if not self.engine.words_tools:
            raise InvalidInputError(
                f"The chat template of {self.model_name} has no words for tools. Take a model "
                "whose template knows them, or ask for JSON in the prompt and parse it."
            )
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        names = [schema["function"]["name"] for schema in schemas]
        if tool_choice == "none":
            schemas = []
        elif isinstance(tool_choice, str) and tool_choice not in ("auto", "any", "required"):
            if tool_choice not in names:
                raise InvalidInputError(
                    f"There is no tool {tool_choice!r} to choose; there are {', '.join(names)}."
                )
            schemas = [schemas[names.index(tool_choice)]]
        return self.bind(tools=schemas, **kwargs)

    def get_num_tokens(self, text: str) -> int:
        """Tokens of `text` by the model's own tokenizer."""
        return len(self.engine.encode(text))

    def _metadata(self, answer: Answer) -> dict[str, Any]:
        return {"model_name": self.engine.model_name} | answer.report()


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
        blocks = message.content if isinstance(message.content, list) else []
        if any(isinstance(block, dict) and block.get("type") != "text" for block in blocks):
            raise InvalidInputError(f"A {message.type} message holds content other than text.")
        worded: Message = {"role": role, "content": str(message.text)}
        if isinstance(message, AIMessage) and message.tool_calls:
            worded["tool_calls"] = [
                {
                    "type": "function",
                    "id": call["id"],
                    "function": {"name": call["name"], "arguments": call["args"]},
                }
                for call in message.tool_calls
            ]
        if isinstance(message, ToolMessage):
            worded["tool_call_id"] = message.tool_call_id
            worded["name"] = message.name or ""
        converted.append(worded)
    return converted


def _with_calls(said: Said) -> ChatGenerationChunk:
    """What was said and called, as one piece of a stream."""
    calls = [
        tool_call_chunk(name=call["name"], args=args, id=call["id"], index=number)
        for number, (call, args) in enumerate(said.with_arguments())
    ]
    return ChatGenerationChunk(message=AIMessageChunk(content=said.text, tool_call_chunks=calls))


def _usage(answer: Answer) -> UsageMetadata:
    usage = answer.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.reused_tokens),
    )
