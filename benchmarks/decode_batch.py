"""Decode of several requests at once: a step of the model, and the attention of one layer.

shared    over the same chunks in place, each request with other places, stale and private tokens
buffers   over a buffer each
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from statistics import median
from typing import Any

import torch

from benchmarks.kernel import CHUNK, HeadShape
from fusionrag_integrations.attention.attend import attend_rows, attention_in_place
from fusionrag_integrations.attention.rope import RotaryTable
from fusionrag_integrations.attention.rows import Rows
from fusionrag_integrations.attention.segments import (
    PrivateRows,
    Segment,
    Segments,
    SharedSequence,
)
from fusionrag_integrations.attention.sequences import Room, SequenceRows
from fusionrag_integrations.attention.spec import AttentionSpec
from fusionrag_integrations.bench.clock import kernel_ms, times_ms
from fusionrag_integrations.bench.machine import described, where_and_when
from fusionrag_integrations.execution.buffer import KVBuffer, SequenceKV
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.in_place import InPlaceKV
from fusionrag_integrations.execution.steps import DecodeRow

PRIVATE = 7  # every so many of a chunk's tokens are a request's own: 15% of them


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """Medians in milliseconds, of one step or one layer's attention of so many requests."""

    requests: int
    shared_ms: float
    buffers_ms: float


@dataclass(frozen=True, slots=True, eq=False)
class _Chunks:
    """Random chunks that requests share, and how keys are rotated to positions."""

    kv: Sequence[tuple[torch.Tensor, torch.Tensor]]
    rotations: Callable[[Sequence[int]], RotaryTable]

    @classmethod
    def of(
        cls,
        shape: tuple[int, int, int],
        context: int,
        like: torch.Tensor,
        rotations: Callable[[Sequence[int]], RotaryTable],
    ) -> _Chunks:
        """shape: layers, key heads and their size; like: of the KV's dtype and device."""
        layers, heads, size = shape
        room = (2, layers, heads, CHUNK, size)
        kv = [like.new_empty(room).normal_().unbind() for _ in range(-(-context // CHUNK))]
        return cls([(keys, values) for keys, values in kv], rotations)

    def request(self, number: int, answer: int) -> tuple[Segments, list[int]]:
        """The segments of a request, and the positions of its private tokens."""
        segments, own, at = [], list(range(number + 1)), number + 1
        for keys, values in self.kv:
            segments.append(Segment(keys, values, 0, at, CHUNK))
            own += range(at + number % PRIVATE, at + CHUNK, PRIVATE)
            at += CHUNK
        own += range(at, at + answer)
        return Segments(segments, self.rotations([one.start for one in segments])), own


def measure_decode_batch(
    model: CausalModel, context: int, requests: Sequence[int], repeat: int
) -> dict[str, Any]:
    """A step of each number of requests, every one behind a prompt of about `context` tokens."""
    executor, like = Executor(model), torch.empty(0, dtype=model.dtype, device=model.device)
    shape = model.num_layers, model.num_kv_heads, model.head_dim

    def rotations(shifts: Sequence[int]) -> RotaryTable:
        return RotaryTable.of(model.rotation(shifts), model.head_dim)

    chunks, answer, rows = _Chunks.of(shape, context, like, rotations), repeat + 8, []
    for many in requests:
        shared, ends = [], []
        for number in range(many):
            segments, own = chunks.request(number, answer)
            kv = like.new_empty((2, shape[0], shape[1], len(own), shape[2])).normal_()
            shared.append(InPlaceKV(segments, own, kv[0], kv[1]))
            ends.append(own[-1] + 1 - answer)
        in_place = _step_ms(executor, shared, ends, repeat)
        del shared
        buffers = [executor.new_buffer(end + answer) for end in ends]
        for buffer in buffers:
            buffer.keys.normal_()
            buffer.values.normal_()
        rows.append(BatchTimes(many, in_place, _step_ms(executor, buffers, ends, repeat)))
    result = where_and_when() | described(model) | {"context": context}
    return result | {"steps": [asdict(row) for row in rows]}


def _step_ms(
    executor: Executor,
    kvs: Sequence[InPlaceKV] | Sequence[KVBuffer],
    ends: Sequence[int],
    repeat: int,
) -> float:
    """Graphs are made before the clock starts."""
    steps = count()
    several: list[SequenceKV] = list(kvs)

    def step() -> torch.Tensor:
        behind = next(steps)
        return executor.decode(
            [DecodeRow(1, end + behind, kv) for end, kv in zip(ends, several, strict=True)]
        )

    for _ in range(6):
        step()
    return median(times_ms(step, repeat, executor.model.device))


def measure_batched_attention(
    shape: HeadShape,
    context: int,
    requests: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    repeat: int,
) -> dict[str, Any]:
    """One layer's attention of one row of each of so many requests."""
    like, spec, rows = (
        torch.empty(0, dtype=dtype, device=device),
        AttentionSpec(shape.size**-0.5),
        [],
    )
    other = torch.arange(shape.size, device=device, dtype=torch.int32).roll(shape.size // 2)

    def rotations(shifts: Sequence[int]) -> RotaryTable:
        angles = torch.rand((1, len(shifts), shape.size), device=device)
        return RotaryTable(angles.cos(), angles.sin(), other)

    chunks = _Chunks.of((1, shape.kv_heads, shape.size), context, like, rotations)
    for many in requests:
        sequences, last = [], []
        for number in range(many):
            segments, own = chunks.request(number, 1)
            kv = like.new_empty((2, 1, shape.kv_heads, len(own), shape.size)).normal_()
            sequences.append(SharedSequence(segments, Room(kv[0], kv[1]), torch.tensor(own)))
            last.append(Rows.at(own[-1:], device))
        private = PrivateRows(last, sequences)
        rooms = [
            Room(*like.new_empty((2, 1, shape.kv_heads, one.last + 1, shape.size)).normal_())
            for one in last
        ]
        placed, in_place = SequenceRows(last, rooms), attention_in_place(private)
        queries = like.new_empty((shape.heads, many, shape.size)).normal_()

        def shared(in_place: Any = in_place, queries: torch.Tensor = queries) -> Any:
            return in_place.attend(0, queries, spec)

        def buffers(placed: SequenceRows = placed, queries: torch.Tensor = queries) -> Any:
            return attend_rows(0, queries, placed, spec)

        rows.append(
            BatchTimes(many, kernel_ms(shared, repeat, device), kernel_ms(buffers, repeat, device))
        )
    facts = asdict(shape) | {"context": context, "dtype": str(dtype).removeprefix("torch.")}
    return where_and_when() | facts | {"attention": [asdict(row) for row in rows]}
