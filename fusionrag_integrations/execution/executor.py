"""The one object that runs a model, and owns what its passes need on the device.

Axes: R rows of a pass, V vocabulary, L layers, Hkv key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import torch
from transformers import Cache

from fusionrag_integrations.attention.attend import attends_in_triton
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

    token_ids: as many as positions; or hidden: the rows' states before layer `first`, [R, hidden].
    depth: the layer before which they end; None for the model's end, where the logits of the `last`
    of them are wanted.
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
        shape = (model.num_layers, model.num_kv_heads, capacity, model.head_dim)
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
        rows = [Rows.at(one.positions, self.model.device) for one in inputs]
        outputs = self._through_layers(inputs, rows)
        deepest = self.model.num_layers - 1
        for depth in (deepest, deepest + 1):
            ending = [
                i
                for i, one in enumerate(inputs)
                if one.depth is None and max(one.first, deepest) == depth
            ]
            finished = self._finish(depth, [(inputs[i], rows[i], outputs[i]) for i in ending])
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

    def _through_layers(
        self, inputs: Sequence[SequenceInput], rows: Sequence[Rows]
    ) -> list[torch.Tensor]:
        """Each one's states behind its last layer, or before the model's last."""
        deepest = self.model.num_layers - 1
        stops = [deepest if one.depth is None else one.depth for one in inputs]
        hidden = [one.hidden for one in inputs]
        cuts = sorted({*(one.first for one in inputs), *stops})
        for lower, upper in [*pairwise(cuts)] or [(0, 0)]:
            here = [i for i, one in enumerate(inputs) if one.first <= lower and upper <= stops[i]]
            if not here:
                continue
            parts = [Part(inputs[i].kv.over(rows[i]), inputs[i].capture) for i in here]
            given: dict[str, torch.Tensor]
            if lower == 0:
                ids = [token for i in here for token in inputs[i].token_ids]
                given = {"token_ids": self._ids(ids)}
            else:
                given = {
                    "hidden": torch.cat([state for i in here if (state := hidden[i]) is not None])
                }
            states = _hidden(self._partial.between(lower, upper), parts, **given)
            for i, state in zip(
                here, torch.split(states, [len(rows[i]) for i in here]), strict=True
            ):
                hidden[i] = state
        return [state for state in hidden if state is not None]

    def _finish(
        self, depth: int, ending: Sequence[tuple[SequenceInput, Rows, torch.Tensor]]
    ) -> list[torch.Tensor]:
        """The last layer, where `depth` leaves it, and logits, of the rows whose logits are wanted.

        Of the others keys and values are all that anything needs there. ending: inputs, with their
        rows and states behind the layers before `depth`.
        """
        written = [
            (Part(one.kv.over(rows.part(slice(stop))), one.capture), state[:stop])
            for one, rows, state in ending
            if (stop := len(rows) - one.last) and depth < self.model.num_layers
        ]
        if written:
            with suppress(KeysWritten):
                _hidden(
                    self._partial.above(depth).base_model,
                    [part for part, _ in written],
                    keys_only=True,
                    hidden=torch.cat([state for _, state in written]),
                )
        wanted = [
            (Part(one.kv.over(rows.part(slice(-one.last, None)))), state[-one.last :])
            for one, rows, state in ending
            if one.last
        ]
        if not wanted:
            return [state[:0] for _, _, state in ending]
        logits = _logits(
            self._partial.above(depth),
            [part for part, _ in wanted],
            hidden=torch.cat([state for _, state in wanted]),
        )
        return list(torch.split(logits, [one.last for one, _, _ in ending]))

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

        Changes each one's KV at its row's position. On CUDA it is a graph once a few steps of its
        size are out (`DecodeSteps`), if Triton's kernels know the heads' size.
        """
        model = self.model
        if attends_in_triton(model.device, model.head_dim):
            return self._decode_steps(rows)
        parts = [Part(row.kv.over(Rows.at((row.position,), model.device))) for row in rows]
        return _logits(model.hf, parts, token_ids=self._ids([row.token_id for row in rows]))

    def appender(self, kv: SequenceKV, position: int) -> StepFunction:
        """A function that appends a token to `kv`, from `position` on, and gives logits [V]."""
        positions = count(position)
        return lambda token_id: self.decode([DecodeRow(token_id, next(positions), kv)])[0]

    def _ids(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(token_ids, device=self.model.device)


def _hidden(model: Any, parts: Sequence[Part], **inputs: Any) -> torch.Tensor:
    """The rows' states behind a base model's layers, [R, hidden]."""
    output = model(**pass_inputs(parts, **inputs))
    hidden: torch.Tensor = output.last_hidden_state[0]
    return hidden


def _logits(model: Any, parts: Sequence[Part], **inputs: Any) -> torch.Tensor:
    """All rows', [R, V]."""
    logits: torch.Tensor = model(**pass_inputs(parts, **inputs)).logits[0]
    return logits
