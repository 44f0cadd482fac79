"""FusionRAGLLM: LlamaIndex's language model over an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from llama_index.core.base.llms.generic_utils import (
    messages_to_prompt as generic_messages_to_prompt,
)
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
from llama_index.core.llms.llm import (
    CompletionToPromptType,
    MessagesToPromptType,
    default_completion_to_prompt,
)
from llama_index.core.prompts import BasePromptTemplate, SelectorPromptTemplate

from fusionrag_integrations.adapters.answer_options import AnswerOptions
from fusionrag_integrations.adapters.base import Stream
from fusionrag_integrations.adapters.huggingface import HeldModel
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.llama_index.component import EngineComponent
from fusionrag_integrations.llama_index.packing import ModelPromptHelper
from fusionrag_integrations.llama_index.responses import (
    astreamed,
    chat_response,
    completion_response,
    streamed,
)
from fusionrag_integrations.prompt.messages import Message, Prompt
from fusionrag_integrations.serving.settings import AnswerSettings

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _completion(method: _Method) -> _Method:
    """LlamaIndex's decorator, with the method's own types."""
    return cast(_Method, llm_completion_callback()(method))


def _chat(method: _Method) -> _Method:
    """The same for chats."""
    return cast(_Method, llm_chat_callback()(method))


class FusionRAGLLM(AnswerOptions, EngineComponent, CustomLLM):
    """Answers prompts and chat messages from the KV of the chunks that they contain.

    Chunks are found by their content, so any response mode and prompt template will do. A
    response's `raw` counts the tokens that were reused, recomputed and computed afresh, and breaks
    down the time to first token, in milliseconds; `additional_kwargs` counts tokens under their
    common names. Every setting can be given per call: `llm.complete(prompt, ratio=0.3)`.

    Calls raise `InvalidInputError` for invalid settings, prompts and messages, and
    `PromptTooLongError` if the prompt doesn't fit the context. A stream that is closed and a task
    that is cancelled end after their current token, or the prompt's computation, and release their
    KV.

        llm = FusionRAGLLM(engine=engine)  # or base_url="http://localhost:8000", a server's
        RetrieverQueryEngine.from_args(retriever=retriever, llm=llm).query("Who ...?")
    """

    @classmethod
    def class_name(cls) -> str:
        return "FusionRAGLLM"

    @classmethod
    def _held_by(cls, llm: Any) -> HeldModel:
        return HeldModel.of_llama_index(llm)

    @property
    def metadata(self) -> LLMMetadata:
        """The model's own context window in tokens, and whether it takes chat messages.

        It does if its tokenizer or `messages_to_prompt` renders them; not if text is `raw`, or
        `completion_to_prompt` is given.
        """
        return LLMMetadata(
            context_window=self._engine.context_window,
            num_output=self.max_tokens,
            is_chat_model=self._asked_by_messages,
            model_name=self._engine.model_name,
        )

    def prompt_helper(self) -> PromptHelper:
        """Packs contexts by the model's own tokens, for response synthesizers.

        Without it LlamaIndex counts tokens as OpenAI's models do, and may cut chunks that fit, or
        make prompts that don't. Give it to `get_response_synthesizer(prompt_helper=...)`, or to
        all, chat engines included, as `Settings.prompt_helper`.
        """
        return ModelPromptHelper(
            context_window=self.metadata.context_window,
            num_output=self.metadata.num_output,
            tokenizer=partial(self._engine.encode, control_tokens=False),
            prompt_tokens=self._prompt_tokens,
        )

    @_completion
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        answer = self._completion_stream(prompt, formatted, kwargs).read()
        return completion_response(answer.text, None, answer)

    @_completion
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        return streamed(self._completion_stream(prompt, formatted, kwargs), completion_response)

    @_chat
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        answer = self._chat_stream(messages, kwargs).read()
        return chat_response(answer.text, None, answer)

    @_chat
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return streamed(self._chat_stream(messages, kwargs), chat_response)

    # The parent's asynchronous methods block the event loop while the model works, and call the
    # decorated ones above, so that one call counts as two.

    @_completion
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        answer = await self._completion_stream(prompt, formatted, kwargs).aread()
        return completion_response(answer.text, None, answer)

    @_completion
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        return astreamed(self._completion_stream(prompt, formatted, kwargs), completion_response)

    @_chat
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        answer = await self._chat_stream(messages, kwargs).aread()
        return chat_response(answer.text, None, answer)

    @_chat
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        return astreamed(self._chat_stream(messages, kwargs), chat_response)

    def _completion_stream(
        self, prompt: str, formatted: bool, changes: Mapping[str, Any]
    ) -> Stream:
        """formatted: whether LlamaIndex has rendered the prompt; users may render others."""
        if not formatted and (given := self._given_for_prompts):
            prompt, formatted = given(prompt), True
        return self._engine.stream(prompt, self._settings(changes, formatted))

    def _chat_stream(self, messages: Sequence[ChatMessage], changes: Mapping[str, Any]) -> Stream:
        prompt = self._prompt(messages)
        return self._engine.stream(prompt, self._settings(changes, isinstance(prompt, str)))

    def _settings(self, changes: Mapping[str, Any], formatted: bool) -> AnswerSettings:
        return self.settings(None, {**changes, "raw": True} if formatted else changes)

    def _prompt_tokens(self, prompt: BasePromptTemplate) -> int:
        """Tokens of the prompt that `predict` would make if each variable were one letter."""
        if isinstance(prompt, SelectorPromptTemplate):
            prompt = prompt.select(self)
        letters = {name: "x" for name in prompt.template_vars if name not in prompt.kwargs}
        asked: Prompt
        if self.metadata.is_chat_model:
            asked = self._prompt(self._get_messages(prompt, **letters))
        else:
            asked = self._get_prompt(prompt, **letters)
        return self._engine.count_tokens(asked, raw=True)

    def _prompt(self, messages: Sequence[ChatMessage]) -> Prompt:
        """Messages for the model's own template, or their text if users render them."""
        if given := self._given_for_messages:
            return given(messages)
        converted = to_messages(messages)
        if self._engine.has_chat_template:
            return converted
        return generic_messages_to_prompt(messages)

    @property
    def _given_for_messages(self) -> MessagesToPromptType | None:
        """A user's own `messages_to_prompt`; without one LlamaIndex sets a default."""
        given = self.messages_to_prompt
        return None if given is generic_messages_to_prompt else given

    @property
    def _given_for_prompts(self) -> CompletionToPromptType | None:
        given = self.completion_to_prompt
        return None if given is default_completion_to_prompt else given

    @property
    def _asked_by_messages(self) -> bool:
        if self._given_for_messages:
            return True
        return self._engine.has_chat_template and not self.raw and not self._given_for_prompts


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
                f"A {message.role.value} message holds content other than text; give text alone."
            )
        converted.append({"role": _ROLES[message.role], "content": message.content or ""})
    return converted
