"""FusionRAGLLM: LlamaIndex's language model over an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import BasePromptTemplate, SelectorPromptTemplate

from fusionrag_integrations.engine import AnswerStream
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.llama_index.packing import ModelPromptHelper
from fusionrag_integrations.options import AnswerOptions
from fusionrag_integrations.types import Message, Prompt

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}
_Item = TypeVar("_Item")


class FusionRAGLLM(AnswerOptions, CustomLLM):
    """Answers prompts and chat messages from the KV of the chunks that stand in them.

    Chunks are found by their content, so any response mode and prompt template will do. A
    response's `raw` tells how many tokens were reused, recomputed and computed afresh, and where
    the time to first token went. Every setting can be given per call:
    `llm.complete(prompt, ratio=0.3)`.

        llm = FusionRAGLLM(engine=engine)
        RetrieverQueryEngine.from_args(retriever=retriever, llm=llm).query("Who ...?")
    """

    @classmethod
    def class_name(cls) -> str:
        return "FusionRAGLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The model's real context window, and whether its tokenizer words chats."""
        return LLMMetadata(
            context_window=self.engine.context_window,
            num_output=self.max_tokens,
            is_chat_model=self.engine.has_chat_template,
            model_name=self.engine.model_name,
        )

    def prompt_helper(self) -> PromptHelper:
        """Packs contexts by what the model reads, for response synthesizers.

        Without it LlamaIndex counts tokens as OpenAI's models do, and may cut chunks that fit, or
        leave prompts that don't. Give it to `get_response_synthesizer(prompt_helper=...)`, or to
        all, chat engines included, as `Settings.prompt_helper`.
        """
        return ModelPromptHelper(
            context_window=self.metadata.context_window,
            num_output=self.metadata.num_output,
            tokenizer=self.engine.encode,
            prompt_tokens=self._prompt_tokens,
        )

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return self._complete(self._worded(prompt, formatted), kwargs)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        return self._stream_complete(self._worded(prompt, formatted), kwargs)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._chat(self._prompt(messages), kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._stream_chat(self._prompt(messages), kwargs)

    # The parent's asynchronous methods block the event loop while the model works, and call the
    # decorated ones above, so that one call counts as two.

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        return await asyncio.to_thread(self._complete, self._worded(prompt, formatted), kwargs)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        return _in_threads(self._stream_complete(self._worded(prompt, formatted), kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await asyncio.to_thread(self._chat, self._prompt(messages), kwargs)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        return _in_threads(self._stream_chat(self._prompt(messages), kwargs))

    def _complete(self, prompt: str, changes: Mapping[str, Any]) -> CompletionResponse:
        answer = self.engine.answer(prompt, self.settings(None, changes))
        return CompletionResponse(text=answer.text, raw=answer.report())

    def _stream_complete(self, prompt: str, changes: Mapping[str, Any]) -> CompletionResponseGen:
        stream = self.engine.stream(prompt, self.settings(None, changes))
        for text, delta, raw in _so_far(stream):
            yield CompletionResponse(text=text, delta=delta, raw=raw)

    def _chat(self, prompt: Prompt, changes: Mapping[str, Any]) -> ChatResponse:
        answer = self.engine.answer(prompt, self.settings(None, changes))
        return ChatResponse(message=_assistant(answer.text), raw=answer.report())

    def _stream_chat(self, prompt: Prompt, changes: Mapping[str, Any]) -> ChatResponseGen:
        stream = self.engine.stream(prompt, self.settings(None, changes))
        for text, delta, raw in _so_far(stream):
            yield ChatResponse(message=_assistant(text), delta=delta, raw=raw)

    def _prompt_tokens(self, prompt: BasePromptTemplate) -> int:
        """Tokens that `predict` would put before the model, were each variable one letter."""
        if isinstance(prompt, SelectorPromptTemplate):
            prompt = prompt.select(self)
        letters = {name: "x" for name in prompt.template_vars if name not in prompt.kwargs}
        asked: Prompt
        if self.metadata.is_chat_model:
            asked = to_messages(self._get_messages(prompt, **letters))
        else:
            asked = self._get_prompt(prompt, **letters)
        return self.engine.count_tokens(asked)

    def _worded(self, prompt: str, formatted: bool) -> str:
        """LlamaIndex lets users wrap prompts by a function of their own."""
        if formatted or self.completion_to_prompt is None:
            return prompt
        return self.completion_to_prompt(prompt)

    def _prompt(self, messages: Sequence[ChatMessage]) -> Prompt:
        converted = to_messages(messages)
        if self.engine.has_chat_template or self.messages_to_prompt is None:
            return converted
        return self.messages_to_prompt(messages)


def to_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """LlamaIndex's messages as chat templates take them: system, user and assistant, with text.

    Raises `InvalidInputError` for other roles, and for content other than text.
    """
    converted: list[Message] = []
    for message in messages:
        if message.role not in _ROLES:
            raise InvalidInputError(
                f"Messages with the role {message.role.value!r} are not supported; give "
                f"{', '.join(role.value for role in _ROLES)} messages."
            )
        if not all(isinstance(block, TextBlock) for block in message.blocks):
            raise InvalidInputError(
                f"A {message.role.value} message holds content other than text."
            )
        converted.append({"role": _ROLES[message.role], "content": message.content or ""})
    return converted


def _assistant(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def _so_far(stream: AnswerStream) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """The text so far, the newest piece, and at last the answer's report."""
    text = ""
    for piece in stream:
        text += piece
        yield text, piece, None
    yield text, "", stream.answer.report()


async def _in_threads(items: Iterator[_Item]) -> AsyncGenerator[_Item, None]:
    """An iterator whose every step runs in a thread."""
    end = object()
    while (item := await asyncio.to_thread(next, items, end)) is not end:
        yield item  # type: ignore[misc]
