"""A prompt and its answer as `generate` computes them: by the model's own calls and its own cache.

How a cache is named, made and passed on differs among models: keys and values, a state, both. That
is left to transformers, by the methods that it documents for decoding of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from fusionrag_integrations.execution.hf.generation import own_inputs


class OwnSequence:
    """One sequence: first a prompt is appended as a whole, then token after token.

    A prompt isn't cut: many layers with a state go on from it by one token only, and begin anew
    where they are given several.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._ids = torch.empty(1, 0, dtype=torch.int64, device=model.device)
        self._logits = torch.empty(0)
        self._given: dict[str, Any] | None = None  # the cache, and more; None: compute all anew

    def append(self, token_ids: Sequence[int], start: int) -> torch.Tensor:
        """Compute the tokens from position `start` on; returns the logits behind them, [1, V].

        May be repeated, as where a pass has failed: a cache can't take a token back.
        """
        stop = start + len(token_ids)
        if self._given is not None and stop == self._ids.shape[1]:
            return self._logits
        given = self._given if len(token_ids) == 1 else None
        self._given = None  # a call that fails leaves the cache half written
        self._ids = torch.cat([self._ids[:, :start], self._ids.new_tensor([list(token_ids)])], 1)
        if given is None:
            given = own_inputs(self._model, self._ids)
            asked: dict[str, int] = {"is_first_iteration": True}
        else:
            asked = {"next_sequence_length": 1}
        inputs = self._model.prepare_inputs_for_generation(self._ids, **asked, **given)
        output = self._model(**inputs, return_dict=True)
        self._logits = output.logits[:, -1]
        self._given = self._model._update_model_kwargs_for_generation(
            output, given, is_encoder_decoder=False
        )
        return self._logits
