"""Full attention of sequences whose KV isn't kept: by the model's own calls and its own cache.

So any model can be asked, and each answer is what `generate` gives. Every call is of one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from fusionrag_integrations.execution.hf.own_sequence import OwnSequence
from fusionrag_integrations.execution.hf.plain_model import PlainModel


@dataclass(frozen=True, slots=True, eq=False)
class OwnInput:
    """A sequence's tokens from position `start` on, which are appended to it."""

    token_ids: Sequence[int]
    start: int
    sequence: OwnSequence


class OwnExecutor:
    """Runs a model of any kind, which stays as it is."""

    def __init__(self, model: PlainModel) -> None:
        self.model = model

    @torch.inference_mode()
    def run(self, inputs: Sequence[OwnInput]) -> list[torch.Tensor]:
        """One call for each input; returns the logits behind it, [1, V]."""
        return [one.sequence.append(one.token_ids, one.start) for one in inputs]


@dataclass(frozen=True, slots=True, eq=False)
class OwnOutput:
    """A sequence behind its prompt, and the logits there, [1, V]."""

    logits: torch.Tensor
    sequence: OwnSequence


class OwnPrefill:
    """The work of a prompt, all in one call. See `Work`."""

    def __init__(self, model: PlainModel, token_ids: Sequence[int]) -> None:
        self._token_ids = token_ids
        self._sequence = OwnSequence(model.hf)
        self._logits = torch.empty(0)
        self.left = len(token_ids)

    def take(self, most: int) -> list[OwnInput]:
        self.left = 0
        return [OwnInput(self._token_ids, 0, self._sequence)]

    def give(self, outputs: Sequence[torch.Tensor]) -> None:
        self._logits = outputs[-1]

    @cached_property
    def result(self) -> OwnOutput:
        return OwnOutput(self._logits, self._sequence)
