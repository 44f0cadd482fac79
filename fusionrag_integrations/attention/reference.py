"""The formula: what every faster path must give. Slow, and it holds all weights at once."""

from __future__ import annotations

import torch

from fusionrag_integrations.attention.rows import visible
from fusionrag_integrations.attention.sequences import SequenceRows
from fusionrag_integrations.attention.spec import AttentionSpec


def reference_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    spec: AttentionSpec,
) -> torch.Tensor:
    """softmax(capped(scaling Q K^T)) V over what is visible, in float32; see `attend`."""
    group = queries.shape[0] // keys.shape[0]
    wide = [kv.float().repeat_interleave(group, dim=0) for kv in (keys, values)]
    scores = spec.capped(queries.float() @ wide[0].transpose(1, 2) * spec.scaling)
    hidden = ~visible(positions, keys.shape[1], spec.window)
    return (spec.softmax(scores.masked_fill(hidden, -torch.inf)) @ wide[1]).to(queries.dtype)


def reference_rows(
    layer: int, queries: torch.Tensor, rows: SequenceRows, spec: AttentionSpec
) -> torch.Tensor:
    """The same of several sequences, one after the other; see `attend_rows`."""
    output = torch.empty_like(queries)
    for number, (one, room) in enumerate(zip(rows.rows, rows.rooms, strict=True)):
        own = slice(*rows.starts[number : number + 2])
        keys, values = (kept[layer, :, : one.last + 1] for kept in (room.keys, room.values))
        output[:, own] = reference_attention(queries[:, own], keys, values, one.on_device, spec)
    return output
