"""Attention in blocks of rows over PyTorch's own: the CPU's path.

A block multiplies with no key behind its last row, nor before its first row's window, so that rows
in ascending order cost about half of a product with all keys. Heads that share keys read one copy.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from fusionrag_integrations.attention.reference import visible
from fusionrag_integrations.attention.rows import Block, Rows
from fusionrag_integrations.attention.spec import AttentionSpec


def blocked_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: Rows,
    spec: AttentionSpec,
) -> torch.Tensor:
    """See `attend`."""
    output = torch.empty_like(queries)
    for block in rows.blocks:
        begin = 0 if spec.window is None else max(0, block.first - spec.window + 1)
        seen = slice(begin, block.last + 1)
        output[:, block.start : block.stop] = scaled_dot_product_attention(
            queries[None, :, block.start : block.stop],
            keys[None, :, seen],
            values[None, :, seen],
            attn_mask=_mask(rows, block, begin, spec.window),
            scale=spec.scaling,
            enable_gqa=True,
        )[0]
    return output


def _mask(rows: Rows, block: Block, begin: int, window: int | None) -> torch.Tensor | None:
    """bool [block, keys]; none where all of the block's rows see all."""
    if block.first == block.last:
        return None
    positions = rows.on_device[block.start : block.stop] - begin
    return visible(positions, block.last + 1 - begin, window)
