"""The one object that runs a model, and owns what its passes need on the device.

Axes: R rows of a pass, V vocabulary, L layers, Hkv key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Any

import torch
from transformers import Cache

from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.execution.buffer import KVBuffer, SequenceKV
from fusionrag_integrations.execution.hf.layers import PartialModels
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.hf.rows_pass import (
    Capture,
    KeysWritten,
    Part,
    pass_inputs,
)
from fusionrag_integrations.execution.steps import DecodeRow, DecodeSteps, StepFunction


@dataclass(frozen=True, slots=True, eq=False)
class SequenceInput:
    """One sequence's rows in a pass: their KV is written to `kv`, their attention shown to
    `capture`.

    token_ids: as many as positions. hidden: the rows' states before layer `first`, [R, hidden],
    where it isn't 0. depth: the layer before which they end; None for the model's end, where the
    logits of the `last` of them are wanted.
    """

    token_ids: Sequence[int]
    positions: Sequence[int]
    kv: SequenceKV
    capture: Capture | None = None
    hidden: torch.Tensor | None = None
    first: int = 0
    depth: int | None = None
    last: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class DenseInput:
    """A prompt's next tokens under full attention, with the model's own cache of those before."""

    token_ids: Sequence[int]
    cache: Cache


@dataclass(frozen=True, slots=True, eq=False)
class _Going:
    """Rows of an input on their way through the layers. states: None before the first."""

    input: SequenceInput
    rows: Rows
    states: torch.Tensor | None

    def some(self, part: slice, **changes: Any) -> _Going:
        """Some of the rows; and what else is to change of the input."""
        states = None if self.states is None else self.states[part]
        one = replace(self.input, token_ids=self.input.token_ids[part], **changes)
        return _Going(one, self.rows.part(part), states)

    @property
    def part(self) -> Part:
        return Part(self.input.kv.over(self.rows), self.input.capture)


class Executor:
    """Runs a model, which stays as it is. Tensors are on the model's device, logits in its dtype.

    Threads may share it: passes change only the KV that they are given.
    """

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self._partial = PartialModels(model.hf)
        self._decode_steps = DecodeSteps(model)

    def new_buffer(self, capacity: int) -> KVBuffer:
        """Room for `capacity` tokens, [L, Hkv, capacity, D] each of keys and values, undefined."""
        model = self.model
        shape = (model.kv_layers, model.num_kv_heads, capacity, model.head_dim)
        keys, values = (
            torch.empty(shape, dtype=model.dtype, device=model.device) for _ in range(2)
        )
        return KVBuffer(keys, values, model.kv_stream)

    @torch.inference_mode()
    def run(self, inputs: Sequence[SequenceInput | DenseInput]) -> list[torch.Tensor]:
        """One pass over the rows of several sequences, computed together but for their attention.

        At every layer the rows' keys and values replace what their KV holds there, and each row
        attends to all positions of its sequence up to its own, as far as the layer's window
        reaches. Changes each sequence's KV at its positions only. Rows may come in any order;
        ascending is quickest. Several inputs may be of one sequence: all are written before any row
        attends.

        A prompt under full attention has a call of the model to itself: it is the model's own.

        Returns for each input the logits of its `last` rows, [last, V]; where `depth` is given, its
        rows' states there, [R, hidden]; under full attention the last token's logits, [1, V].
        """
        shared = iter(self._run_rows([one for one in inputs if isinstance(one, SequenceInput)]))
        return [
            next(shared) if isinstance(one, SequenceInput) else self._run_dense(one)
            for one in inputs
        ]

    def _run_rows(self, inputs: Sequence[SequenceInput]) -> list[torch.Tensor]:
        if not inputs:
            return []
        if all(len(one.positions) == one.last == 1 and not one.first for one in inputs):
            tokens = [DecodeRow(one.token_ids[0], one.positions[0], one.kv) for one in inputs]
            return list(torch.split(self.decode(tokens), 1))
        going = self._through_layers(inputs)
        outputs = [one.states for one in going if one.states is not None]
        whole = [i for i, one in enumerate(inputs) if one.depth is None]
        for depth in sorted({self._last_needed(inputs[i]) for i in whole}):
            ending = [i for i in whole if self._last_needed(inputs[i]) == depth]
            finished = self._finish(depth, [going[i] for i in ending])
            for i, logits in zip(ending, finished, strict=True):
                outputs[i] = logits
        return outputs

    def forward_rows(
        self, token_ids: Sequence[int], positions: Sequence[int], kv: SequenceKV, last: int = 1
    ) -> torch.Tensor:
        """`run` for one sequence; returns the `last` rows' logits, [last, V]."""
        return self.run([SequenceInput(token_ids, positions, kv, last=last)])[0]

    def _run_dense(self, one: DenseInput) -> torch.Tensor:
        ids = self._ids(one.token_ids)[None]
        output = self.model.hf(
            input_ids=ids, past_key_values=one.cache, use_cache=True, logits_to_keep=1
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _last_needed(self, one: SequenceInput) -> int:
        """The last layer that writes KV or is shown, or the one that the rows go on from."""
        shown = one.capture.layers if one.capture else ()
        return max(one.first, self.model.last_written, *shown)

    def _through_layers(self, inputs: Sequence[SequenceInput]) -> list[_Going]:
        """Each one behind its last layer, or before the last that all its rows are needed in."""
        stops = [self._last_needed(one) if one.depth is None else one.depth for one in inputs]
        device = self.model.device
        going = [_Going(one, Rows.at(one.positions, device), one.hidden) for one in inputs]
        cuts = sorted({*(one.first for one in inputs), *stops})
        for lower, upper in [*pairwise(cuts)] or [(0, 0)]:
            here = [i for i, one in enumerate(inputs) if one.first <= lower and upper <= stops[i]]
            if not here:
                continue
            states = self._hidden(self._partial.between(lower, upper), [going[i] for i in here])
            of_each = torch.split(states, [len(going[i].rows) for i in here])
            for i, own in zip(here, of_each, strict=True):
                going[i] = replace(going[i], states=own)
        return going

    def _finish(self, depth: int, ending: Sequence[_Going]) -> list[torch.Tensor]:
        """The layers from `depth` on, and the logits that are wanted, of rows that are before it.

        Of the others keys, values and queries of that layer are all that anything still needs.
        """
        upper = self._partial.above(depth)
        lasts = [one.input.last for one in ending]
        if depth < self.model.num_layers:
            cut = [(one, len(one.rows) - last) for one, last in zip(ending, lasts, strict=True)]
            if others := [one.some(slice(stop)) for one, stop in cut if stop]:
                with suppress(KeysWritten):
                    self._hidden(upper.base_model, others, keys_only=True)
        wanted = [
            one.some(slice(-last, None), capture=None)
            for one, last in zip(ending, lasts, strict=True)
            if last
        ]
        if not wanted:
            return [one.states[:0] for one in ending if one.states is not None]
        return list(torch.split(self._logits(upper, wanted), lasts))

    @torch.inference_mode()
    def prefill_dense(self, token_ids: Sequence[int]) -> tuple[torch.Tensor, StepFunction]:
        """Full attention: the model's own prefill with its own cache.

        Returns the last token's logits [V], and a function that appends a token to that cache.
        """
        model, device = self.model.hf, self.model.device
        output = model(
            input_ids=torch.tensor([list(token_ids)], device=device),
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values

        @torch.inference_mode()
        def step(token_id: int) -> torch.Tensor:
            ids = torch.tensor([[token_id]], device=device)
            logits: torch.Tensor = model(
                input_ids=ids, past_key_values=cache, use_cache=True
            ).logits[0, -1]
            return logits

        return output.logits[0, -1], step

    @torch.inference_mode()
    def decode(self, rows: Sequence[DecodeRow]) -> torch.Tensor:
        """One more token of each of several requests, in one pass; logits behind each, [B, V].

        Changes each one's KV at its row's position. Where a step can be a CUDA graph, it is one
        once a few of its size are out (`DecodeSteps`).
        """
        model = self.model
        if model.repeats_steps:
            return self._decode_steps(rows)
        inputs = [SequenceInput((row.token_id,), (row.position,), row.kv) for row in rows]
        going = [_Going(one, Rows.at(one.positions, model.device), None) for one in inputs]
        return self._logits(model.hf, going)

    def appender(self, kv: SequenceKV, position: int) -> StepFunction:
        """A function that appends a token to `kv`, from `position` on, and gives logits [V]."""
        positions = count(position)
        return lambda token_id: self.decode([DecodeRow(token_id, next(positions), kv)])[0]

    def _hidden(
        self, model: Any, going: Sequence[_Going], *, keys_only: bool = False
    ) -> torch.Tensor:
        """The rows' states behind a base model's layers, [R, hidden]."""
        hidden: torch.Tensor = model(**self._inputs(going, keys_only)).last_hidden_state[0]
        return hidden.to(self.model.device)

    def _logits(self, model: Any, going: Sequence[_Going]) -> torch.Tensor:
        """All rows', [R, V]."""
        logits: torch.Tensor = model(**self._inputs(going)).logits[0]
        return logits.to(self.model.device)

    def _inputs(self, going: Sequence[_Going], keys_only: bool = False) -> dict[str, Any]:
        states = [one.states for one in going if one.states is not None]
        return pass_inputs(
            self.model.layout,
            [one.part for one in going],
            self._ids([token for one in going for token in one.input.token_ids]),
            hidden=torch.cat(states) if states else None,
            keys_only=keys_only,
        )

    def _ids(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(token_ids, device=self.model.device)
