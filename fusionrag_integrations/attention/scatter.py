"""New keys and values of several sequences, written to their slots in one launch, in Triton.

shapes    keys, values [Hkv, R, D]; table int64 [sequences, 6]; owners, slots int64 [R]
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fusionrag_integrations.attention.sequences import SequenceRows

BLOCK = 32  # rows


@triton.jit(do_not_specialize=["layer"])
def scatter_kernel(
    keys,
    values,
    table,
    owners,
    slots,
    layer,
    rows,
    key_head,
    key_row,
    value_head,
    value_row,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A block of rows of one head."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    size = tl.arange(0, PADDED)
    real = row < rows
    used = real[:, None] & (size < SIZE)[None, :]
    entry = table + tl.load(owners + row, mask=real, other=0) * COLUMNS
    slot = tl.load(slots + row, mask=real, other=0)
    there = layer * tl.load(entry + 4) + head * tl.load(entry + 5) + slot * SIZE
    to_keys = tl.load(entry + 2).to(tl.pointer_type(keys.dtype.element_ty)) + there
    to_values = tl.load(entry + 3).to(tl.pointer_type(keys.dtype.element_ty)) + there
    of_keys = keys + head * key_head + row[:, None] * key_row + size[None, :]
    of_values = values + head * value_head + row[:, None] * value_row + size[None, :]
    key = tl.load(of_keys, mask=used, other=0.0)
    value = tl.load(of_values, mask=used, other=0.0)
    tl.store(to_keys[:, None] + size[None, :], key, mask=used)
    tl.store(to_values[:, None] + size[None, :], value, mask=used)


def scatter_rows(layer: int, keys: torch.Tensor, values: torch.Tensor, rows: SequenceRows) -> None:
    """See `write_rows`. The last dimension of keys and values must be contiguous."""
    heads, count, size = keys.shape
    scatter_kernel[(triton.cdiv(count, BLOCK), heads)](
        *(keys, values, rows.table, rows.owners, rows.slots, layer, count),
        *(stride for tensor in (keys, values) for stride in tensor.stride()[:2]),
        SIZE=size,
        PADDED=triton.next_power_of_2(size),
        BLOCK=BLOCK,
        COLUMNS=rows.table.shape[1],
    )
