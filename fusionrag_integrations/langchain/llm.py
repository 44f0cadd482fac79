"""FusionRAGLLM: LangChain's string model over an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from fusionrag_integrations.adapters.answer_options import AnswerOptions
from fusionrag_integrations.adapters.base import Answered
from fusionrag_integrations.adapters.huggingface import HeldModel
from fusionrag_integrations.support.inputs import checked_value


class FusionRAGLLM(AnswerOptions, BaseLLM):
    """Answers prompts from the KV of the chunks that they contain.

    Chunks are found by their content, so any chain and prompt template will do. Each generation's
    `generation_info` counts the tokens that were reused, recomputed and computed afresh, and
    breaks down the time to first token, in milliseconds. Every setting can be given per call:
    `llm.invoke(prompt, ratio=0.3)` or `llm.bind(selector="none", handles=[...])`.

    Calls raise `InvalidInputError` for invalid settings and prompts, and `PromptTooLongError` if
    the prompt doesn't fit the context. A stream that is closed and a task that is cancelled end
    after their current token, or the prompt's computation, and release their KV.

        llm = FusionRAGLLM(engine=engine)  # or base_url="http://localhost:8000", a server's
        chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | llm
    """

    @classmethod
    def _held_by(cls, llm: Any) -> HeldModel:
        held = HeldModel.of_langchain(llm)
        return replace(held, settings=held.settings | {"raw": True})  # prompts are whole texts

    @property
    def _llm_type(self) -> str:
        return "fusionrag"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """The tracing parameters of a call; `stop` is checked here, before LangChain reads it."""
        checked_value("stop", stop, Sequence[str] | None)
        return super()._get_ls_params(stop=stop, **kwargs)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.identity()

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        settings = self.settings(stop, kwargs)
        return self._result(self._engine.answer_all(prompts, settings))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        settings = self.settings(stop, kwargs)
        tasks = [
            asyncio.create_task(self._engine.stream(prompt, settings).aread()) for prompt in prompts
        ]
        try:
            return self._result(await asyncio.gather(*tasks))
        finally:  # where one fails, the others end too
            for task in tasks:
                task.cancel()

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        with closing(self._engine.stream(prompt, self.settings(stop, kwargs))) as stream:
            for piece in stream:
                chunk = GenerationChunk(text=piece)
                if run_manager:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            yield GenerationChunk(text="", generation_info=stream.answer.report())

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        async with aclosing(self._engine.stream(prompt, self.settings(stop, kwargs))) as stream:
            async for piece in stream:
                chunk = GenerationChunk(text=piece)
                if run_manager:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            yield GenerationChunk(text="", generation_info=stream.answer.report())

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of a text's tokens by the model's own tokenizer; `get_num_tokens` counts them."""
        return self._engine.encode(text)

    def _result(self, answers: Sequence[Answered]) -> LLMResult:
        prompt = sum(answer.usage.prompt_tokens for answer in answers)
        completion = sum(answer.usage.completion_tokens for answer in answers)
        counts = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        return LLMResult(
            generations=[[Generation(text=a.text, generation_info=a.report())] for a in answers],
            llm_output={"model_name": self.model_name, "token_usage": counts},
        )
