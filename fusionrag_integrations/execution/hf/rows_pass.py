"""A pass over rows of tokens at any positions: what transformers is given in the place of its own.

What it relies on:
- every supported model calls `past_key_values.update(k, v, layer_idx)` with rotated keys (what
  else that may be, `KVLayout` knows), so a cache that writes rows at given positions makes the
  model compute any positions in any order;
- attention and mask functions are looked up by one registered name, and extra keyword
  arguments of the model's forward reach the attention function, as a layer's window does.

Rows of several sequences can share a pass: everything but attention treats each row alone.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import KVSharingDict
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fusionrag_integrations.attention.rows import visible
from fusionrag_integrations.attention.sequences import joined
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.errors import UnsupportedModelError
from fusionrag_integrations.execution.hf.kv_layout import KVLayout
from fusionrag_integrations.execution.hf.rows_batches import RowsBatches
from fusionrag_integrations.execution.hf.supported import IN_FULL
from fusionrag_integrations.execution.rows_kv import RowsKV
from fusionrag_integrations.selectors.probe import LayerView

ATTENTION = "fusionrag"
# What transformers 5.17 to 5.24 give attention functions beside `dropout`, 0 unless a model trains,
# and changes nothing here: positions are the rows', masks follow from them.
_WITHOUT_EFFECT = frozenset(
    (
        *("position_ids", "cache_position", "use_cache", "is_causal"),
        *("output_attentions", "output_hidden_states", "return_dict"),
        "resumed",  # for the first layers, see `hf/layers.py`
    )
)
ROWS = 512  # whose weights the formula holds
# Transformers makes no mask where it is given one of four dimensions; rows need none.
_NO_MASK = torch.empty(1, 1, 1, 1)


def register() -> None:
    """Make transformers know the attention by its name; models then choose it in their config."""
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class KeysWritten(Exception):  # noqa: N818 nothing went wrong
    """Ends a pass of which nobody wants more."""


class Capture(Protocol):
    """What a pass shows its attention to, layer by layer, while the model runs."""

    @property
    def layers(self) -> Collection[int]:
        """Which layers it wants to see."""
        ...

    def record(self, layer: int, view: LayerView) -> None:
        """view: all rows of the sequence. Its keys are the KV's own, up to the last position."""
        ...


@dataclass(slots=True)
class ViewCapture:
    """Keeps what the rows from `first` on ask in chosen layers."""

    first: int
    layers: frozenset[int]
    views: dict[int, LayerView] = field(default_factory=dict)

    def record(self, layer: int, view: LayerView) -> None:
        """Keep the chosen rows."""
        self.views[layer] = view.of_rows(slice(self.first, None))


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's share of a pass."""

    kv: RowsKV
    capture: Capture | None = None


def pass_inputs(
    layout: KVLayout,
    parts: Sequence[Part],
    token_ids: torch.Tensor,
    *,
    hidden: torch.Tensor | None = None,
    keys_only: bool = False,
) -> dict[str, Any]:
    """What makes a model run over the parts' rows, one part behind the other.

    token_ids: int64 [R]. hidden: states [R, hidden] from which the model's first layer goes on
    (`hf/layers.py`). keys_only: of the first layer that attends; the pass ends there, by
    `KeysWritten`.
    """
    kvs = [part.kv for part in parts]
    return batches_inputs(
        layout,
        RowsBatches.of(kvs),
        token_ids,
        joined([kv.rows for kv in kvs]),
        max(kv.rows.last for kv in kvs) + 1,
        captured=_captured(parts),
        keys_only=keys_only,
        **({} if hidden is None else {"resumed": hidden[None]}),
    )


def batches_inputs(
    layout: KVLayout,
    batches: RowsBatches,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    length: int,
    **more: Any,
) -> dict[str, Any]:
    """The same over rows that are grouped already.

    positions: of all rows, int64 [R]. length: no row stands at this position, or behind it. more:
    for layers and the attention function.
    """
    if layout.shape.shared:
        more["shared_kv_states"] = _NotGiven()
    return more | {
        "input_ids": token_ids[None],
        "position_ids": positions[None],
        "past_key_values": _PassCache(layout, batches, length),
        "use_cache": True,
        "attention_mask": _NO_MASK,
        "layout": layout,
        "batches": batches,
    }


def _captured(parts: Sequence[Part]) -> list[tuple[Part, Capture, slice]]:
    """The parts that show their attention, to what, and which rows are theirs."""
    starts = accumulate((len(part.kv.rows) for part in parts), initial=0)
    return [
        (part, part.capture, slice(start, start + len(part.kv.rows)))
        for part, start in zip(parts, starts, strict=False)
        if part.capture
    ]


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    layout: KVLayout | None = None,
    batches: RowsBatches | None = None,
    captured: Sequence[tuple[Part, Capture, slice]] = (),
    keys_only: bool = False,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of all rows; without `batches`, transformers' own.

    keys_only: only keys and values are wanted, which are written by now. Raises
    `UnsupportedModelError` for an argument that would change what attention is.
    """
    known = _known(module, kwargs)
    spec = AttentionSpec(scaling, sliding_window, softcap, s_aux)
    if layout is None or batches is None:
        return _whole(module, query, key, value, attention_mask, spec, known)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    # KV is on one device, whichever the layer is on: rows are few beside the keys that they see.
    queries = layout.queries(module, query[0]).to(batches.device)
    spec = spec.on(batches.device)
    for part, capture, rows in captured:
        if layer in capture.layers:
            keys, _ = layout.read(module, *part.kv.layer(layout.shape.sources[layer]))
            capture.record(layer, LayerView(queries[:, rows], keys, part.kv.rows.on_device, spec))
    if keys_only:
        raise KeysWritten
    attended = layout.attend(module, queries, batches, spec)
    return attended.transpose(0, 1)[None].to(query.device), None


def _whole(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    spec: AttentionSpec,
    known: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    """Transformers' SDPA attention; where that can't compute it, the family's own formula, which
    holds all weights of some rows at once.
    """
    asked, length = query.shape[2], key.shape[2]
    # No mask: each row sees all keys up to its own; with fewer rows than keys, they are the last.
    if mask is None and (not spec.is_plain or 1 < asked < length):
        asking = torch.arange(length - asked, length, device=query.device)
        mask = visible(asking, length, None)[None, None]
    if spec.is_plain or mask is None:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, mask, scaling=spec.scaling, **known
        )
        return output
    formula = sys.modules[type(module).__module__].eager_attention_forward
    attended = [
        formula(
            *(module, rows, key, value, _added(seen, query.dtype)),
            scaling=spec.scaling,
            softcap=spec.softcap,
        )[0]
        for rows, seen in zip(torch.split(query, ROWS, 2), torch.split(mask, ROWS, 2), strict=True)
    ]
    return torch.cat(attended, 1), None


def _added(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores: the least number where a key isn't seen, as transformers has it, so
    that rows of padding, which see nothing, stay numbers. A mask that is such a sum stays itself.
    """
    if seen.dtype != torch.bool:
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def _known(module: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that may be passed on, less those that are off."""
    for name in given.keys() - _WITHOUT_EFFECT:
        value = given[name]
        if not (value is None or (isinstance(value, int | float) and value == 0)):
            raise UnsupportedModelError(
                f"This {module.config.model_type} model gives its attention {name!r}, which is not "
                f"supported: answers without it would be wrong. {IN_FULL}"
            )
    return {name: given[name] for name in given.keys() & _WITHOUT_EFFECT}


class _PassCache(Cache):  # type: ignore[misc]
    """Writes the new keys and values of all rows; what they attend to, the batches know."""

    def __init__(self, layout: KVLayout, batches: RowsBatches, length: int) -> None:
        """length: no row stands at this position, or behind it."""
        super().__init__(layers=[])
        self._layout = layout
        self._batches = batches
        self._length = length

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._layout.keep(key_states[0], value_states[0])
        layer, device = self._layout.shape.sources[layer_idx], self._batches.device
        self._batches.write(layer, keys.to(device), values.to(device))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length


class _NotGiven(KVSharingDict):  # type: ignore[misc]
    """In the place of what layers share, for those whose layer of origin doesn't run: the attention
    function finds it by the layout.
    """

    def __missing__(self, kind: str) -> tuple[None, None]:
        return None, None
