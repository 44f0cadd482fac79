"""How much context fits into a prompt, counted as the model reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from llama_index.core.indices.prompt_helper import DEFAULT_PADDING, PromptHelper
from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate, SelectorPromptTemplate
from llama_index.core.prompts.default_prompt_selectors import DEFAULT_TEXT_QA_PROMPT_SEL
from llama_index.core.tools import BaseTool
from pydantic import PrivateAttr

from fusionrag_integrations.errors import PromptTooLongError
from fusionrag_integrations.support.inputs import checked

CACHED_WORDS = 4096  # LlamaIndex tokenizes each word that it cuts three times


class ModelPromptHelper(PromptHelper):
    """Packs and cuts contexts by the model's own tokens, its chat template's included.

    LlamaIndex's own counts OpenAI's tokens. It also reserves 500 tokens for an earlier answer to
    refine even if there is none; this one only if the context needs several calls, and no more
    than an answer may have.

    tokenizer: the tokens of a text. prompt_tokens: how many tokens the model reads of a prompt
    whose variables are one letter long.
    """

    _prompt_tokens: Callable[[BasePromptTemplate], int] = PrivateAttr()

    @checked()
    def __init__(
        self,
        *,
        context_window: int,
        num_output: int,
        tokenizer: Callable[[str], list[int]],
        prompt_tokens: Callable[[BasePromptTemplate], int],
    ) -> None:
        cached = lru_cache(CACHED_WORDS)(tokenizer)
        super().__init__(context_window, num_output, tokenizer=cached)
        self._prompt_tokens = prompt_tokens

    @classmethod
    def class_name(cls) -> str:
        return "ModelPromptHelper"

    def repack(
        self,
        prompt: BasePromptTemplate,
        text_chunks: Sequence[str],
        padding: int = DEFAULT_PADDING,
        llm: LLM | None = None,
        tools: list[BaseTool] | None = None,
    ) -> list[str]:
        """The chunks in one text where it fits, else in as few as fit one by one."""
        if "query_str" in _open_variables(prompt):
            # Refining packs again without the question, which may be long.
            if all(isinstance(chunk, _Packed) for chunk in text_chunks):
                return list(text_chunks)
            room = self._get_available_chunk_size(prompt, padding=0, llm=llm, tools=tools)
            return super().repack(prompt, text_chunks, min(padding, room // 2), llm, tools)
        packed = super().repack(prompt, text_chunks, DEFAULT_PADDING, llm, tools)
        if len(packed) > 1:
            padding = min(padding, self.num_output + DEFAULT_PADDING)
            packed = super().repack(prompt, text_chunks, padding, llm, tools)
        return [_Packed(text) for text in packed]

    def _get_available_chunk_size(
        self,
        prompt: BasePromptTemplate,
        num_chunks: int = 1,
        padding: int = DEFAULT_PADDING,
        llm: LLM | None = None,
        tools: list[BaseTool] | None = None,
    ) -> int:
        taken = self._prompt_tokens(prompt)
        if isinstance(prompt, SelectorPromptTemplate) and "context_msg" in _open_variables(prompt):
            # LlamaIndex uses the longer of two prompts, and measures neither as a chat.
            other = DEFAULT_TEXT_QA_PROMPT_SEL.partial_format(**prompt.kwargs)
            taken = max(taken, self._prompt_tokens(other))
        schemas: list[dict[str, Any]] = [
            tool.metadata.to_openai_tool() for tool in self._get_tools_from_llm(llm, tools)
        ]
        taken += self._token_counter.estimate_tokens_in_tools(schemas)
        room = self.context_window - taken - self.num_output
        if room < 0:  # LlamaIndex would take a ValueError for a malformed answer, and continue
            raise PromptTooLongError(
                f"The prompt has {taken} tokens without any context; the model's context holds "
                f"{self.context_window}, of which the answer may take {self.num_output}. Ask a "
                "shorter question, or set max_tokens lower."
            )
        size = room // num_chunks - padding
        return size if self.chunk_size_limit is None else min(size, self.chunk_size_limit)


class _Packed(str):
    """A text that was packed with the question."""

    __slots__ = ()


def _open_variables(prompt: BasePromptTemplate) -> set[str]:
    return set(prompt.template_vars) - prompt.kwargs.keys()
