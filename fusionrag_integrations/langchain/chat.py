"""ChatFusionRAG: LangChain's chat model over an engine, with the tokenizer's own template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from itertools import chain
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from fusionrag_integrations.adapters.answer_options import AnswerOptions
from fusionrag_integrations.adapters.huggingface import HeldModel
from fusionrag_integrations.adapters.tool_calls import PlainText
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.langchain.messages import last_chunks, to_chunk, to_message, to_messages
from fusionrag_integrations.support.inputs import checked_value

Tool = dict[str, Any] | type | Callable[..., Any] | BaseTool


class ChatFusionRAG(AnswerOptions, BaseChatModel):
    """Answers chat messages from the KV of the chunks that they contain.

    `usage_metadata` counts tokens, reused ones as `cache_read`; `response_metadata` is as the
    generation info of `FusionRAGLLM`. Every setting can be given per call. Errors and cancellation
    are as with `FusionRAGLLM`; messages with content other than text raise `InvalidInputError`.

        chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | chat
    """

    @classmethod
    def _held_by(cls, llm: Any) -> HeldModel:
        return HeldModel.of_langchain(llm)

    @property
    def _llm_type(self) -> str:
        return "fusionrag-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """The tracing parameters of a call; `stop` is checked here, before LangChain reads it."""
        checked_value("stop", stop, Sequence[str] | None)
        return super()._get_ls_params(stop=stop, **kwargs)

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
        answer = self._engine.answer(to_messages(messages), settings)
        message = to_message(answer, settings, self.model_name)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        settings = self.settings(stop, kwargs)
        answer = await self._engine.stream(to_messages(messages), settings).aread()
        message = to_message(answer, settings, self.model_name)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        settings = self.settings(stop, kwargs)
        plain = PlainText(settings.tools)
        with closing(self._engine.stream(to_messages(messages), settings)) as stream:
            pieces = (to_chunk(text) for text in map(plain.push, stream) if text)
            for chunk in chain(pieces, last_chunks(stream, plain, self.model_name)):
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        settings = self.settings(stop, kwargs)
        plain = PlainText(settings.tools)
        async with aclosing(self._engine.stream(to_messages(messages), settings)) as stream:
            async for piece in stream:
                if text := plain.push(piece):
                    chunk = to_chunk(text)
                    if run_manager:
                        await run_manager.on_llm_new_token(text, chunk=chunk)
                    yield chunk
            for chunk in last_chunks(stream, plain, self.model_name):
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def bind_tools(
        self,
        tools: Sequence[Tool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call, which its own chat template renders.

        tool_choice: "auto"; "none"; "any"; a tool's name, or OpenAI's {"function": {"name": ...}},
        to give it no other. A call can't be forced: with "any" or a name the model may answer
        instead.

        Raises `InvalidInputError` if the template doesn't support tools, or no tool has the name.
        """
        if not self._engine.supports_tools:
            raise InvalidInputError(
                f"The chat template of {self.model_name} doesn't support tools. Take a model "
                "whose template knows them, or ask for JSON in the prompt and parse it."
            )
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        names = [schema["function"]["name"] for schema in schemas]
        if isinstance(tool_choice, dict):
            tool_choice = str(tool_choice.get("function", tool_choice).get("name"))
        if tool_choice == "none":
            schemas = []
        elif isinstance(tool_choice, str) and tool_choice not in ("auto", "any", "required"):
            if tool_choice not in names:
                raise InvalidInputError(
                    f"There is no tool {tool_choice!r} to choose; there are {', '.join(names)}."
                )
            schemas = [schemas[names.index(tool_choice)]]
        return self.bind(tools=schemas, **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of a text's tokens by the model's own tokenizer; `get_num_tokens` counts them."""
        return self._engine.encode(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Tool] | None = None
    ) -> int:
        """Tokens that the model reads of messages, its chat template's and tools' included.

        If the template refuses the messages, such as a part of a chat that begins with an answer,
        only their texts count. Raises `InvalidInputError` for content other than text.
        """
        converted = to_messages(messages)
        schemas = [convert_to_openai_tool(tool) for tool in tools or ()]
        try:
            return self._engine.count_tokens(converted, schemas)
        except InvalidInputError:
            return sum(self.get_num_tokens(message["content"]) for message in converted)
