"""How both attention kernels are laid out on a device, and where split keys leave their parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch
import triton

from fusionrag_integrations.attention.online_softmax import combine

MOST_SPLITS = 64
PARTS = 16  # that are put together at once
LARGE_SHARED_MEMORY = (9, 10)  # compute capabilities with 227 KB a block; others have 99 or 163


@dataclass(frozen=True, slots=True)
class Launch:
    """How work is laid out. block_m: rows times the heads that share keys; splits: of the keys."""

    block_m: int
    block_n: int
    splits: int
    warps: int
    stages: int


@lru_cache(1 << 10)  # every layer asks the same
def launch_for(
    heads: int,
    kv_heads: int,
    rows: int,
    keys: int,
    head_bytes: int,
    multiprocessors: int,
    sequences: int = 1,
) -> Launch:
    """A layout for which keys are split, where there are enough, until all are at work.

    rows, keys: of each of the sequences, on average and at most.
    head_bytes: of one key. The larger, the smaller the blocks, which must fit in shared memory.
    multiprocessors: of the device. Timed on an H100 for keys of 256 bytes.
    """
    flat = rows * heads // kv_heads
    largest, block_n, stages = (
        (128, 64, 3) if head_bytes <= 256 else (64, 32, 2) if head_bytes <= 512 else (32, 16, 2)
    )
    block_m = min(largest, 16 if flat <= 16 else 64 if flat <= 64 else 128)
    if block_m == 128:
        block_n = 128
    blocks = triton.cdiv(flat, block_m) * kv_heads * sequences
    wanted = multiprocessors * (1 if block_m == 128 else 2) // blocks
    splits = max(1, min(wanted, triton.cdiv(keys, 4 * block_n), MOST_SPLITS))
    return Launch(block_m, block_n, splits, warps=8 if block_m == 128 else 4, stages=stages)


def head_bytes(heads: torch.Tensor) -> int:
    """Of one key, or query; twice as much where the device has little shared memory, so that less
    is held.
    """
    size = heads.shape[-1] * heads.element_size()
    return size if _gpu(heads.device).large_shared_memory else 2 * size


def multiprocessors(device: torch.device) -> int:
    """How many a device has; 1 where it is no GPU."""
    return _gpu(device).multiprocessors


@dataclass(frozen=True, slots=True)
class _GPU:
    multiprocessors: int
    large_shared_memory: bool


@cache
def _gpu(device: torch.device) -> _GPU:
    """What the layout depends on, asked once: it takes longer than some kernels."""
    if device.type != "cuda":
        return _GPU(1, large_shared_memory=True)
    properties = torch.cuda.get_device_properties(device)
    return _GPU(properties.multi_processor_count, properties.major in LARGE_SHARED_MEMORY)


@dataclass(frozen=True, slots=True, eq=False)
class Scratch:
    """Where programs that split the keys leave their parts; empty where one has all of them."""

    parts: torch.Tensor
    maxima: torch.Tensor
    totals: torch.Tensor

    @classmethod
    def of(cls, count: int, queries: torch.Tensor) -> Scratch:
        """Room for so many parts of rows of queries [Hq, R, D]."""
        shape = count, queries.shape[0], queries.shape[2]
        parts = torch.empty(shape, dtype=torch.float32, device=queries.device)
        flat = torch.empty((2, *shape[:-1]), dtype=torch.float32, device=queries.device)
        return cls(parts, flat[0], flat[1])

    def combine_into(self, out: torch.Tensor, first_parts: torch.Tensor) -> None:
        """Put the parts together; out: [Hq, R, D]. first_parts: int64 [R + 1], of each row."""
        heads, rows, size = out.shape
        combine[(rows, heads)](
            *(self.parts, self.maxima, self.totals, first_parts, out, *out.stride()[:2]),
            SIZE=size,
            PADDED=triton.next_power_of_2(size),
            BLOCK=PARTS,
        )
