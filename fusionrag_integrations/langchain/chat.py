"""ChatFusionRAG: LangChain's chat model over an engine, with the tokenizer's own template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from fusionrag_integrations.answer import Answer
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.options import AnswerOptions
from fusionrag_integrations.types import Message

_ROLES = {"system": "system", "human": "user", "ai": "assistant"}


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
        answer = self.engine.answer(to_messages(messages), self.settings(stop, kwargs))
        message = AIMessage(
            content=answer.text,
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
        stream = self.engine.stream(to_messages(messages), self.settings(stop, kwargs))
        for piece in stream:
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                usage_metadata=_usage(stream.answer),
                response_metadata=self._metadata(stream.answer),
                chunk_position="last",
            )
        )

    def get_num_tokens(self, text: str) -> int:
        """Tokens of `text` by the model's own tokenizer."""
        return len(self.engine.encode(text))

    def _metadata(self, answer: Answer) -> dict[str, Any]:
        return {"model_name": self.engine.model_name} | answer.report()


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """LangChain's messages as chat templates take them: system, user and assistant, with text.

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
        converted.append({"role": role, "content": str(message.text)})
    return converted


def _usage(answer: Answer) -> UsageMetadata:
    usage = answer.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.reused_tokens),
    )
