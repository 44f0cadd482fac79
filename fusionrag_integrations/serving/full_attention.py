"""Prompt -> answer where no KV is kept: every prompt is computed in full, by the model's own calls.

prepare    render and tokenize
recompute  all of the prompt
decode     a token at a time
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.own_sequence import OwnSequence
from fusionrag_integrations.execution.own_attention import OwnExecutor, OwnInput, OwnPrefill
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.loading import LoadedPrompt
from fusionrag_integrations.serving.request import Request
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.steps import RequestSteps
from fusionrag_integrations.serving.usage import Usage
from fusionrag_integrations.store.for_model import no_kv


class FullAttention(RequestSteps):
    """The steps of requests of an engine without KV."""

    executor: OwnExecutor
    why_full = "its engine keeps no KV (kv='none')."

    def recompute(self, request: Request) -> None:
        model, token_ids = self.executor.model, request.encoded.token_ids
        if request.work is None:
            request.work = OwnPrefill(model, token_ids)
            return
        prefill, request.work = request.work.result, None
        request.watch.lap("prefill")
        request.usage = Usage.of_full_attention(len(token_ids), model.num_layers)
        append = partial(_appended, prefill.sequence)
        request.begin_output(prefill.logits.device, append, self._tokenizer)
        self.decode(request, prefill.logits[0])

    def load_prompt(self, prompt: Prompt, settings: AnswerSettings) -> LoadedPrompt:
        raise no_kv(self._catalog.store)

    def _settled(self, settings: AnswerSettings) -> AnswerSettings:
        if settings.kv not in (None, "none"):
            raise InvalidInputError(
                f"kv is {settings.kv!r}, and the store at {self._catalog.store} keeps no KV. Leave "
                "kv out, or make a new store with a model whose KV can be reused."
            )
        return replace(settings, kv="none")


def _appended(sequence: OwnSequence, token_id: int, position: int) -> OwnInput:
    return OwnInput((token_id,), position, sequence)
