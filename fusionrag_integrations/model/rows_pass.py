"""A pass over rows of tokens at any positions: what transformers is given in the place of its own.

What it relies on:
- every supported model calls `past_key_values.update(k, v, layer_idx)` with rotated keys, so a
  cache that writes rows at given positions makes the model compute any positions in any order;
- attention and mask functions are looked up by one registered name, and extra keyword
  arguments of the model's forward reach the attention function, as a layer's window does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fusionrag_integrations.kernels import Rows, attend
from fusionrag_integrations.model.buffer import KVBuffer
from fusionrag_integrations.types import LayerView

ATTENTION = "fusionrag"
# Transformers makes no mask where it is given one of four dimensions; rows need none.
_NO_MASK = torch.empty(1, 1, 1, 1)


def register() -> None:
    """Make transformers know the attention by its name; models then choose it in their config."""
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def pass_inputs(
    rows: Rows,
    buffer: KVBuffer,
    *,
    token_ids: Sequence[int] | None = None,
    hidden: torch.Tensor | None = None,
    capture: Capture | None = None,
    keys_only: bool = False,
) -> dict[str, Any]:
    """What makes a model run over rows of a buffer, from token ids or hidden states [R, hidden].

    keys_only: write keys and values, and compute no attention.
    """
    given = (
        {"inputs_embeds": hidden[None]}
        if hidden is not None
        else {"input_ids": torch.tensor([token_ids], device=rows.on_device.device)}
    )
    return given | {
        "position_ids": rows.on_device[None],
        "past_key_values": _RowsCache(buffer, rows),
        "use_cache": True,
        "attention_mask": _NO_MASK,
        "rows": rows,
        "capture": capture,
        "keys_only": keys_only,
    }


class Capture(Protocol):
    """What a pass shows its attention to, layer by layer, while the model runs."""

    def record(self, layer: int, view: LayerView) -> None:
        """view: all rows of the pass. Its keys are the buffer's own, up to the last position."""
        ...


@dataclass(slots=True)
class ViewCapture:
    """Keeps what the rows from `first` on ask in chosen layers."""

    first: int
    layers: frozenset[int]
    views: dict[int, LayerView] = field(default_factory=dict)

    def record(self, layer: int, view: LayerView) -> None:
        """Keep the chosen rows, if it is a chosen layer."""
        if layer in self.layers:
            self.views[layer] = replace(
                view,
                queries=view.queries[:, self.first :],
                positions=view.positions[self.first :],
            )


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    rows: Rows | None = None,
    capture: Capture | None = None,
    keys_only: bool = False,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of rows at any positions; without `rows`, transformers' own SDPA attention.

    keys_only: no attention is wanted, only keys and values, which are in the cache by now.
    """
    if rows is None:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    if capture is not None:
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        view = LayerView(query[0], key[0], rows.on_device, sliding_window, scaling)
        capture.record(layer, view)
    if keys_only:
        return query.transpose(1, 2), None
    attended = attend(query[0], key[0], value[0], rows, scaling, sliding_window)
    return attended.transpose(0, 1)[None], None


class _RowsCache(Cache):  # type: ignore[misc]
    """Shows a `KVBuffer` to transformers for one pass over some rows.

    Each layer's new keys and values replace what stands at the rows' positions, and the layer
    attends to everything up to the last of them.
    """

    def __init__(self, buffer: KVBuffer, rows: Rows) -> None:
        super().__init__(layers=[])
        self._buffer = buffer
        self._slots = rows.on_device
        self._length = max(rows.positions) + 1

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys = self._buffer.keys[layer_idx : layer_idx + 1]
        values = self._buffer.values[layer_idx : layer_idx + 1]
        keys.index_copy_(2, self._slots, key_states)
        values.index_copy_(2, self._slots, value_states)
        return keys[:, :, : self._length], values[:, :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length
