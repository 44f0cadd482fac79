"""What ingest costs a chunk: its isolated pass, and its fused pass behind neighbours.

And what a token of an answer costs, over KV that was put in place and under full attention.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import count
from statistics import median
from typing import Any

import torch

from fusionrag_integrations.bench.clock import times_ms
from fusionrag_integrations.bench.machine import described, where_and_when
from fusionrag_integrations.chunk_kv import fuse_chunk, prefill_chunk, prefill_prefix
from fusionrag_integrations.model import CausalModel

PREFIX_TOKENS = 14


@dataclass(frozen=True, slots=True)
class OfflineTimes:
    """Medians in milliseconds. ratio: fused over isolated."""

    chunk_tokens: int
    neighbours: int
    isolated_ms: float
    fused_ms: float
    ratio: float


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Medians in milliseconds a token, over a prompt of `context` tokens."""

    context: int
    placed_ms: float
    dense_ms: float


def measure_offline(
    model: CausalModel, chunk_tokens: int, neighbours: int, repeat: int
) -> dict[str, Any]:
    """The passes over one chunk, of random tokens."""
    prefix = prefill_prefix(model, _tokens(model, PREFIX_TOKENS))
    chunk, *before = (
        prefill_chunk(model, prefix, _tokens(model, chunk_tokens, seed), key=f"{seed:02x}")
        for seed in range(neighbours + 1)
    )
    passes = (
        lambda: prefill_chunk(model, prefix, chunk.token_ids, key="00"),
        lambda: fuse_chunk(model, prefix, chunk, before, key="ff"),
    )
    isolated, fused = (median(times_ms(once, repeat, model.device)) for once in passes)
    row = OfflineTimes(chunk_tokens, neighbours, isolated, fused, fused / isolated)
    return where_and_when() | described(model) | asdict(row)


def measure_decode(model: CausalModel, context: int, repeat: int) -> dict[str, Any]:
    """One token after the other behind a prompt of random tokens."""
    room = context + repeat + 1
    buffer = model.new_buffer(room)
    buffer.keys.normal_()
    buffer.values.normal_()
    placed_step = model.appender(buffer, context)
    _, dense_step = model.prefill_dense(_tokens(model, context))
    tokens = count(1)
    placed = median(times_ms(lambda: placed_step(next(tokens)), repeat, model.device))
    dense = median(times_ms(lambda: dense_step(next(tokens)), repeat, model.device))
    return where_and_when() | described(model) | asdict(DecodeTimes(context, placed, dense))


def _tokens(model: CausalModel, number: int, seed: int = 0) -> tuple[int, ...]:
    draw = torch.Generator().manual_seed(seed)
    most = int(model.hf.config.vocab_size)
    return tuple(torch.randint(most, (number,), generator=draw).tolist())
