"""FusionRAGLLM: LangChain's string model over an engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from fusionrag_integrations.options import AnswerOptions


class FusionRAGLLM(AnswerOptions, BaseLLM):
    """Answers prompts from the KV of the chunks that stand in them.

    Chunks are found by their content, so any chain and prompt template will do. Each generation's
    `generation_info` tells how many tokens were reused, recomputed and computed afresh, and where
    the time to first token went. Every setting can be given per call:
    `llm.invoke(prompt, ratio=0.3)` or `llm.bind(selector="none", handles=[...])`.

        llm = FusionRAGLLM(engine=engine)
        chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | llm
    """

    @property
    def _llm_type(self) -> str:
        return "fusionrag"

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
        answers = [self.engine.answer(prompt, settings) for prompt in prompts]
        return LLMResult(
            generations=[[Generation(text=a.text, generation_info=a.report())] for a in answers]
        )

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        stream = self.engine.stream(prompt, self.settings(stop, kwargs))
        for piece in stream:
            chunk = GenerationChunk(text=piece)
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield GenerationChunk(text="", generation_info=stream.answer.report())

    def get_num_tokens(self, text: str) -> int:
        """Tokens of `text` by the model's own tokenizer."""
        return len(self.engine.encode(text))
