"""The pipelines that users have today: transformers' own generate, as each framework's model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from langchain_core.language_models import LLM, SimpleChatModel
from llama_index.core.llms import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    CustomLLM,
    LLMMetadata,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_TOKENS = 12


class Generator:
    """A model and its tokenizer, which answer messages under full attention, greedily."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def reply(self, messages: list[dict[str, str]]) -> str:
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = self.model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True))

    def complete(self, prompt: str) -> str:
        return self.reply([{"role": "user", "content": prompt}])


class LangChainLLM(LLM):
    generator: Any

    @property
    def _llm_type(self) -> str:
        return "plain"

    def _call(self, prompt: str, *_: Any, **__: Any) -> str:
        return str(self.generator.complete(prompt))


class LangChainChat(SimpleChatModel):
    generator: Any

    @property
    def _llm_type(self) -> str:
        return "plain"

    def _call(self, messages: list[Any], *_: Any, **__: Any) -> str:
        roles = {"system": "system", "human": "user", "ai": "assistant"}
        plain = [{"role": roles[m.type], "content": str(m.text)} for m in messages]
        return str(self.generator.reply(plain))


class LlamaIndexLLM(CustomLLM):
    generator: Any

    @property
    def metadata(self) -> LLMMetadata:
        window = self.generator.model.config.max_position_embeddings
        return LLMMetadata(context_window=window, num_output=MAX_TOKENS, is_chat_model=True)

    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        return CompletionResponse(text=self.generator.complete(prompt))

    def stream_complete(self, prompt: str, formatted: bool = False, **_: Any) -> Any:
        yield self.complete(prompt)

    def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        plain = [{"role": m.role.value, "content": m.content or ""} for m in messages]
        message = ChatMessage(role="assistant", content=self.generator.reply(plain))
        return ChatResponse(message=message)
