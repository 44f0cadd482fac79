"""What an engine does with prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.answer import Answer, AnswerStream
from fusionrag_integrations.serving.loading import LoadedPrompt
from fusionrag_integrations.serving.pipeline import Pipeline
from fusionrag_integrations.serving.serving_loop import ServingLoop
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.steps import RequestSteps
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.support.inputs import checked


class Answering:
    """The part of an engine that answers prompts, and expects them."""

    kv: TieredKV
    pipeline: RequestSteps
    serving: ServingLoop

    @property
    def keeps_kv(self) -> bool:
        """Whether the store keeps KV; otherwise (`kv="none"`) each prompt is computed in full."""
        return isinstance(self.pipeline, Pipeline)

    def _check_usable(self) -> None:
        raise NotImplementedError

    @checked(leave=("prompt",))
    def answer(self, prompt: Prompt, settings: AnswerSettings | None = None) -> Answer:
        """Answer a prompt: a string, or chat messages for the tokenizer's template.

        Raises `InvalidInputError` (an empty prompt, an unknown selector) and
        `PromptTooLongError`. KV that is missing, damaged or foreign is never served: its tokens
        are computed afresh, and counted in the answer.
        """
        return self.stream(prompt, settings).read()

    @checked(leave=("prompts",))
    def answer_all(
        self, prompts: Sequence[Prompt], settings: AnswerSettings | None = None
    ) -> list[Answer]:
        """Answer prompts together, in their order. Raises as `answer` does; none goes on then."""
        with ExitStack() as begun:
            streams = [begun.enter_context(closing(self.stream(p, settings))) for p in prompts]
            for stream in streams:
                stream.begin()
            return [stream.read() for stream in streams]

    @checked(leave=("prompt",))
    def stream(self, prompt: Prompt, settings: AnswerSettings | None = None) -> AnswerStream:
        """Like `answer`, as an iterator over pieces of text. Work begins when it is first read.

        Answers that are read at the same time are computed together. Work ends when a task that
        reads is cancelled.
        """
        self._check_usable()
        return self.serving.stream(prompt, settings or AnswerSettings())

    @checked(leave=("prompt",))
    def count_tokens(
        self,
        prompt: Prompt,
        tools: Sequence[Mapping[str, Any]] = (),
        raw: bool | None = None,
        *,
        scopes: Sequence[str] | None = None,
    ) -> int:
        """Tokens that the model reads of a prompt, its chat template's and tools' included.

        raw, scopes: as in `AnswerSettings`. Raises as `answer` does for an invalid prompt.
        """
        settings = AnswerSettings(
            tools=tuple(tools), raw=raw, scopes=None if scopes is None else tuple(scopes)
        )
        return len(self.pipeline.encode(prompt, settings).token_ids)

    @checked(leave=("prompt",))
    def load(self, prompt: Prompt, settings: AnswerSettings | None = None) -> LoadedPrompt:
        """A prompt with the KV that `answer` would place for it, for inspection."""
        self._check_usable()
        return self.pipeline.load_prompt(prompt, settings or AnswerSettings())

    @checked()
    def prefetch(self, handles: Iterable[KVHandle]) -> None:
        """Begin to load the KV of chunks that the next prompt will contain; returns at once.

        handles: in the prompt's order, as far as it is known: its first chunk is used isolated.
        """
        self._check_usable()
        if not self.keeps_kv:
            return
        given = list(handles)
        first = [handle.isolated_key for handle in given[:1]]
        rest = [handle.fused_key or handle.isolated_key for handle in given]
        self.kv.prefetch([*first, *rest])

    @checked()
    def register_texts(self, texts: Iterable[str], *, scope: str = "") -> None:
        """Register texts that were not ingested and that prompts may contain, such as an upload's.

        The KV of a text that occurs again, or while there is room to spare, is stored for later
        requests; no search finds it. scope: whose requests may use it, and behind whose chunks it
        is fused once it is used often.
        """
        self._check_usable()
        self.pipeline.adhoc.register(texts, scope)
