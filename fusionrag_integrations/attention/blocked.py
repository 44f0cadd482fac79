"""Attention in blocks of rows over PyTorch's own: the CPU's path.

A block is of one sequence. It multiplies with no key behind its last row, nor before its first
row's window, so that rows in ascending order cost about half of a product with all keys. Heads
that share keys read one copy. The loop over blocks calls PyTorch once each, and nothing that was
tried on a CPU was clearly faster over KV that each sequence has for itself: 9 query and 3 key heads
of 64 in float32 on two threads, milliseconds a layer:

                                1 row of 1, 8, 32 sequences     300 rows of one
                                of about 2,000 keys each        over 2,000 keys
    this loop                   0.16        2.1       9.7       8.1
    products by hand            0.16        2.2       9.0      10.8
    padded, copied first        0.74        4.9        48
    nested tensors                14        190       770

Padded attention over KV that is one tensor already takes 7.5 to 7.9 for 32 sequences and 1.9 to
2.2 for 8; but that KV would have to move whenever a sequence begins or ends.

PyTorch's attention knows no soft caps and no sinks: layers with these multiply by hand.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from fusionrag_integrations.attention.sequences import SequenceRows
from fusionrag_integrations.attention.spec import AttentionSpec


def blocked_attention(
    layer: int, queries: torch.Tensor, rows: SequenceRows, spec: AttentionSpec
) -> torch.Tensor:
    """See `attend_rows`."""
    output = torch.empty_like(queries)
    heads, size = queries.shape[0], queries.shape[2]
    masks = rows.masks(spec.window, heads // rows.kv_heads, queries.dtype)
    for (room, block), mask in zip(rows.blocks, masks, strict=True):
        seen = slice(block.seen_from(spec.window), block.last + 1)
        keys, values = room.keys[layer, None, :, seen], room.values[layer, None, :, seen]
        # Query heads that share keys as rows of one head: a third quicker than `enable_gqa`.
        folded = queries[:, block.start : block.stop].reshape(1, rows.kv_heads, -1, size)
        attended = (
            scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=spec.scaling)
            if spec.is_plain
            else _by_hand(folded[0], keys[0], values[0], mask, heads, spec)
        )
        output[:, block.start : block.stop] = attended.view(heads, -1, size)
    return output


def _by_hand(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    heads: int,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Of queries [Hkv, G x block, D] to keys and values [Hkv, N, D], in float32 within.

    heads: of queries, Hkv times G. mask: as `SequenceRows.masks` has it.
    """
    scores = spec.capped(torch.bmm(queries.float(), keys.float().transpose(1, 2)) * spec.scaling)
    if mask is not None:
        scores += mask
    weights = spec.softmax(scores.view(heads, -1, scores.shape[2])).view(scores.shape)
    return torch.bmm(weights, values.float()).to(queries.dtype)
