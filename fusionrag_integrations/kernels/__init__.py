"""Attention of rows at any positions over keys and values by position: what models run.

rows.py              where the rows stand
reference.py         the formula
blocked.py           in blocks of rows, by PyTorch's own attention
sparse_attention.py  in Triton
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from fusionrag_integrations.kernels.blocked import blocked_attention
from fusionrag_integrations.kernels.reference import reference_attention, visible
from fusionrag_integrations.kernels.rows import MovingRow, Rows

__all__ = ["MovingRow", "Rows", "attend", "reference_attention", "visible"]


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: Rows,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """What the rows attend to, [Hq, R, D], in the queries' dtype.

    queries: rotated, [Hq, R, D], by row. keys, values: rotated, [Hkv, N, D], by position; query
    head h reads head h // (Hq / Hkv). Row i sees the keys up to its own position, with a window
    the last `window` of them. scaling: what QK is multiplied with.

    On CUDA by the Triton kernel, where Triton is installed and the heads are of a size that it
    knows; otherwise in blocks of rows.
    """
    if queries.device.type == "cuda" and _has_triton():
        from fusionrag_integrations.kernels.sparse_attention import HEAD_SIZES, triton_attention

        if queries.shape[2] in HEAD_SIZES:
            return triton_attention(queries, keys, values, rows.on_device, scaling, window)
    return blocked_attention(queries, keys, values, rows, scaling, window)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
