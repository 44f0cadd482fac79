"""Prompt -> tokens, with the chunks in them whose KV is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fusionrag_integrations.errors import PromptTooLongError
from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.prompt import EncodedPrompt, assemble, encode_rendered
from fusionrag_integrations.prompt.assembled import AssembledPrompt, TextMatch
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.known_chunks import KnownChunks
from fusionrag_integrations.serving.known_starts import KnownStarts
from fusionrag_integrations.serving.rendering import render_prompt
from fusionrag_integrations.serving.request import Request
from fusionrag_integrations.serving.settings import AnswerSettings


class Preparation:
    """Prepares the prompts of one model and store."""

    def __init__(
        self,
        model: PlainModel,
        chunks: KnownChunks,
        starts: KnownStarts,
        revision: Callable[[], int],
        break_even: int,
        why_full: str,
    ) -> None:
        """revision: gives the store's. break_even: fewer new tokens are computed in full, unless
        settings say not. why_full: why KV isn't reused where that is settled.
        """
        self._model = model
        self._chunks = chunks
        self._starts = starts
        self._revision = revision
        self._break_even = break_even
        self._why_full = why_full

    def prepare(self, request: Request) -> None:
        """Render, match and tokenize the prompt, and decide whether KV is reused."""
        settings, watch = request.settings, request.watch
        rendered = render_prompt(self._tokenizer, request.prompt, settings, self._chunks)
        watch.lap("encode", wait=False)
        reuses, matches = settings.kv != "none", []
        if reuses:
            matches = self._chunks.find(rendered.text, settings)
            watch.lap("match", wait=False)
        request.encoded = encode_rendered(self._tokenizer, rendered, matches)
        self._fit(request)
        watch.lap("encode", wait=False)
        if not reuses:
            request.dense, request.full_reason = True, self._why_full
            return
        self._assemble(request, matches)
        watch.lap("match", wait=False)

    def _assemble(self, request: Request, matches: Sequence[TextMatch]) -> None:
        """Find out what of the prompt is known, and whether to use it pays."""
        settings, encoded = request.settings, request.encoded
        request.revision = self._revision()
        prompt = assemble(encoded, matches, settings.handles)
        start = self._starts.find(prompt, settings, request.revision)
        new = len(prompt) - len(start)
        request.short = settings.break_even and new < self._break_even
        if request.short:
            told = f"{new} new tokens" if start else f"{new} tokens"
            request.full_reason = f"it has {told}, and reuse pays from {self._break_even} on here."
            prompt = replace(prompt, spans=())
        request.dense = request.short and not start
        request.known, request.assembled = start, prompt.behind(len(start))

    def encode(self, prompt: Prompt, settings: AnswerSettings) -> EncodedPrompt:
        """A prompt's tokens, as in a request."""
        rendered = render_prompt(self._tokenizer, prompt, settings, self._chunks)
        return encode_rendered(self._tokenizer, rendered)

    def assemble(self, prompt: Prompt, settings: AnswerSettings) -> AssembledPrompt:
        """A prompt's tokens and chunks, as in a request."""
        rendered = render_prompt(self._tokenizer, prompt, settings, self._chunks)
        matches = self._chunks.find(rendered.text, settings)
        encoded = encode_rendered(self._tokenizer, rendered, matches)
        return assemble(encoded, matches, settings.handles)

    def _fit(self, request: Request) -> None:
        """Check that the prompt fits the context, and limit the answer to what is left of it."""
        model, token_ids = self._model, request.encoded.token_ids
        room = model.context_window - len(token_ids)
        if room < 1:
            raise PromptTooLongError(
                f"The prompt has {len(token_ids)} tokens; the context of {model.name} holds "
                f"{model.context_window}, and the answer needs at least one of them. Retrieve "
                "fewer or shorter chunks."
            )
        settings = request.settings
        request.settings = replace(settings, max_tokens=min(settings.max_tokens, room))
        request.generation = model.generation(token_ids, request.settings.sampling)

    @property
    def _tokenizer(self) -> Any:
        return self._model.tokenizer
