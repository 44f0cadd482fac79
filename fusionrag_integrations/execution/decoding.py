"""Logits -> tokens, one after the other, sampled and ended by transformers' own rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import StoppingCriteriaList

from fusionrag_integrations.execution.hf.generation import Generation
from fusionrag_integrations.execution.steps import StepFunction

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class DecodedToken:
    """One generated token. `finished` is set on the last."""

    token_id: int
    finished: FinishReason | None


class TokenChooser:
    """Chooses an answer's tokens, from the logits behind the prompt on, until it ends."""

    def __init__(
        self, generation: Generation, device: torch.device, seed: int | None = None
    ) -> None:
        """device: the logits'. seed: makes sampling repeatable."""
        self._generation = generation
        prompt = generation.token_ids
        self._length = prompt.shape[1]
        self._ids = prompt.new_empty(1, self._length + generation.max_tokens)
        self._ids[:, : self._length] = prompt
        self._sampler = torch.Generator(device)
        if seed is None:
            self._sampler.seed()
        else:
            self._sampler.manual_seed(seed)

    @torch.inference_mode()
    def choose(self, logits: torch.Tensor) -> DecodedToken:
        """The token that follows, of logits [V] behind the last one."""
        generation, ids = self._generation, self._ids
        scores = _scores(ids[:, : self._length], logits, generation)
        if generation.sampled:
            token = torch.multinomial(scores.softmax(-1), 1, generator=self._sampler)
        else:
            token = scores.argmax(-1, keepdim=True)
        ids[:, self._length] = token[:, 0]
        self._length += 1
        finished: FinishReason | None = None
        if _reached(generation.ends, ids[:, : self._length], scores):
            finished = "stop"
        elif _reached(generation.limits, ids[:, : self._length], scores):
            finished = "length"
        return DecodedToken(int(token.item()), finished)


class TokenDecoder(Iterator[DecodedToken]):
    """Generates from the prompt's last logits [V], until `generation` ends the answer.

    step: appends a token, and gives the next logits; it runs only once another token is asked for.
    seed: makes sampling repeatable.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        step: StepFunction,
        generation: Generation,
        seed: int | None = None,
    ) -> None:
        self._logits = logits
        self._step = step
        self._chooser = TokenChooser(generation, logits.device, seed)
        self._last: DecodedToken | None = None

    def __next__(self) -> DecodedToken:
        if self._last is not None:
            if self._last.finished:
                raise StopIteration
            self._logits = self._step(self._last.token_id)
        self._last = self._chooser.choose(self._logits)
        return self._last


def _scores(ids: torch.Tensor, logits: torch.Tensor, generation: Generation) -> torch.Tensor:
    """What the processors make of logits [V], which stay as they are; float32 [1, V]."""
    if not generation.processors:
        return logits[None].float()
    scores: torch.Tensor = generation.processors(ids, logits[None].to(torch.float32, copy=True))
    return scores


def _reached(criteria: StoppingCriteriaList, ids: torch.Tensor, scores: torch.Tensor) -> bool:
    return len(criteria) > 0 and bool(criteria(ids, scores).all())
