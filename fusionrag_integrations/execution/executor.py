"""The one object that runs a model, and owns what its passes need on the device.

Axes: R rows of a pass, V vocabulary, L layers, Hkv key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.execution.buffer import KVBuffer, SequenceKV
from fusionrag_integrations.execution.hf.layers import PartialModels
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.hf.rows_pass import Capture, Part, pass_inputs
from fusionrag_integrations.execution.steps import GraphedSteps, StaticStep, StepFunction


@dataclass(frozen=True, slots=True)
class SequenceInput:
    """One sequence's rows in a pass: their KV is written to `kv`, their attention shown to
    `capture`. As many token ids as positions.
    """

    token_ids: Sequence[int]
    positions: Sequence[int]
    kv: SequenceKV
    capture: Capture | None = None


class Executor:
    """Runs a model, which stays as it is. Tensors are on the model's device, logits in its dtype.

    Threads may share it: passes change only the KV that they are given.
    """

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self._partial = PartialModels(model.hf)

    def new_buffer(self, capacity: int) -> KVBuffer:
        """Room for `capacity` tokens, keys and values [L, Hkv, capacity, D], of undefined content.

        On CUDA zeros: a graph of a step reads all of it, with weight 0 where nothing is yet, and
        what is undefined may be no number.
        """
        model = self.model
        shape = (model.num_layers, model.num_kv_heads, capacity, model.head_dim)
        made = torch.zeros if model.device.type == "cuda" else torch.empty
        keys, values = (made(shape, dtype=model.dtype, device=model.device) for _ in range(2))
        return KVBuffer(keys, values, model.kv_stream)

    @torch.inference_mode()
    def forward_rows(
        self, token_ids: Sequence[int], positions: Sequence[int], kv: SequenceKV, last: int = 1
    ) -> torch.Tensor:
        """Run the model over R rows at `positions`; returns the `last` rows' logits, [last, V].

        At every layer the rows' keys and values replace what `kv` holds there, and each row
        attends to all positions up to its own, as far as the layer's window reaches. Changes `kv`
        at `positions` only. Rows may come in any order; ascending is quickest.
        """
        rows, ids = Rows.at(positions, self.model.device), self._ids(token_ids)
        if len(rows) == last:  # as in decode: nothing to save in the last layer
            return _logits(self.model.hf, Part(kv.over(rows)), token_ids=ids)
        depth = self.model.num_layers - 1
        hidden = _hidden(self._partial.between(0, depth), [Part(kv.over(rows))], token_ids=ids)
        return self._finish(hidden, rows, kv, depth, last)

    @torch.inference_mode()
    def compute_kv(self, inputs: Sequence[SequenceInput]) -> None:
        """Like `forward_rows` over several sequences at once, for what it writes to their KV only.

        Changes each one's KV at its positions. Attention apart, their rows are computed together.
        """
        ids = self._ids([token for one in inputs for token in one.token_ids])
        parts = [
            Part(one.kv.over(Rows.at(one.positions, self.model.device)), one.capture)
            for one in inputs
        ]
        hidden = _hidden(self._partial.between(0, self.model.num_layers - 1), parts, token_ids=ids)
        self._write_last(hidden, parts)

    @torch.inference_mode()
    def forward_lower(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        kv: SequenceKV,
        depth: int,
        capture: Capture | None = None,
    ) -> torch.Tensor:
        """Like `forward_rows`, but through the first `depth` layers only.

        Changes `kv` at `positions` in those layers. Returns the rows' hidden states behind them,
        [R, hidden].
        """
        part = Part(kv.over(Rows.at(positions, self.model.device)), capture)
        return _hidden(self._partial.between(0, depth), [part], token_ids=self._ids(token_ids))

    @torch.inference_mode()
    def forward_upper(
        self,
        hidden: torch.Tensor,
        positions: Sequence[int],
        kv: SequenceKV,
        depth: int,
        last: int = 1,
    ) -> torch.Tensor:
        """What is left of `forward_rows` behind the first `depth` layers; logits [last, V].

        hidden: the rows' states there, [R, hidden]. Changes `kv` at `positions` in the layers left.
        """
        rows, deepest = Rows.at(positions, self.model.device), self.model.num_layers - 1
        if depth < deepest:
            part = Part(kv.over(rows))
            hidden = _hidden(self._partial.between(depth, deepest), [part], hidden=hidden)
        return self._finish(hidden, rows, kv, max(depth, deepest), last)

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

    def appender(self, kv: SequenceKV, position: int) -> StepFunction:
        """A function that appends a token to `kv`, from `position` on, and gives logits [V].

        On CUDA it is a graph once a few tokens are out (`GraphedSteps`).
        """
        if self.model.device.type == "cuda":
            step = self.static_step(kv, position)
            return GraphedSteps(step, self.model.device, self.model.graph_lock)
        positions = count(position)
        return lambda token_id: self.forward_rows([token_id], [next(positions)], kv)[0]

    def static_step(self, kv: SequenceKV, position: int) -> StaticStep:
        """What `appender` does, as one step over tensors that stay where they are."""

        def forward(token_id: torch.Tensor, row: Rows) -> torch.Tensor:
            return _logits(self.model.hf, Part(kv.over(row)), token_ids=token_id)[0]

        return StaticStep(forward, position, kv.capacity, self.model.device)

    def _finish(
        self, hidden: torch.Tensor, rows: Rows, kv: SequenceKV, depth: int, last: int
    ) -> torch.Tensor:
        """What only the last rows need whole: the last layer, where `depth` leaves it, and logits.

        hidden: behind the layers before `depth`, [R, hidden].
        """
        if depth < self.model.num_layers and len(rows) > last:
            self._write_last(hidden[:-last], [Part(kv.over(rows.part(slice(-last))))])
        part = Part(kv.over(rows.part(slice(-last, None))))
        return _logits(self._partial.above(depth), part, hidden=hidden[-last:])

    def _write_last(self, hidden: torch.Tensor, parts: Sequence[Part]) -> None:
        """Write the rows' keys and values in the last layer, which is all that others need there.

        hidden: behind the layer before it, [R, hidden].
        """
        _hidden(self._partial.last_kv, parts, keys_only=True, hidden=hidden)

    def _ids(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(token_ids, device=self.model.device)


def _hidden(model: Any, parts: Sequence[Part], **inputs: Any) -> torch.Tensor:
    """The rows' states behind a base model's layers, [R, hidden]."""
    output = model(**pass_inputs(parts, **inputs))
    hidden: torch.Tensor = output.last_hidden_state[0]
    return hidden


def _logits(model: Any, part: Part, **inputs: Any) -> torch.Tensor:
    """All rows', [R, V]."""
    logits: torch.Tensor = model(**pass_inputs([part], **inputs)).logits[0]
    return logits
