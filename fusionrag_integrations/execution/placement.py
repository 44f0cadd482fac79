"""Stored KV -> KV of a prompt: copied into a buffer by position, or shared in place."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Protocol

import torch

from fusionrag_integrations.attention.attend import can_gather
from fusionrag_integrations.attention.rope import RotaryTable, rotate
from fusionrag_integrations.attention.segments import Segment, Segments
from fusionrag_integrations.execution.buffer import KVBuffer, SequenceKV
from fusionrag_integrations.execution.correction import CorrectedKV
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.in_place import InPlaceKV
from fusionrag_integrations.execution.known_start import NOTHING_KNOWN, KnownStart
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.store.corrections import Correction
from fusionrag_integrations.store.kv.types import ChunkKV, LayeredKV

MAX_SEPARATOR_TOKENS = 4  # between chunks; a longer gap counts as content rather than layout


class PromptKV(Protocol):
    """KV of a prompt's chunks, and room for what is computed over it."""

    @property
    def capacity(self) -> int:
        """How many tokens the prompt and its answer may have."""
        ...

    def with_private_tokens(self, positions: Sequence[int]) -> SequenceKV:
        """KV for passes over rows at these positions, ascending: they write there, and read the
        whole prompt.
        """
        ...

    def as_buffer(self) -> KVBuffer:
        """The same with a slot for every position."""
        ...

    def wait(self) -> None:
        """Wait until all of it is there. Raises `KVRecordError` where it can't be read."""
        ...


def place(
    executor: Executor,
    prompt: AssembledPrompt,
    kvs: Sequence[LayeredKV],
    capacity: int,
    start: KnownStart = NOTHING_KNOWN,
) -> PromptKV:
    """KV of the prompt's chunks: shared in place, if all are on the model's device as `to_resident`
    makes them; otherwise copied into a buffer. start: of what the prompt begins with.
    """
    shared = [
        kv
        for kv in kvs
        if isinstance(kv, ChunkKV) and kv.rotated and kv.keys.device == executor.model.device
    ]
    if shared and len(shared) == len(kvs):
        return SharedChunks(executor, prompt, shared, capacity, start)
    return place_in_buffer(executor, prompt, kvs, capacity, start)


@torch.inference_mode()
def place_in_buffer(
    executor: Executor,
    prompt: AssembledPrompt,
    kvs: Sequence[LayeredKV],
    capacity: int,
    start: KnownStart = NOTHING_KNOWN,
) -> KVBuffer:
    """A buffer of `capacity` tokens that holds each span's KV, rotated to its positions.

    kvs: one for each of the prompt's spans, in order, on any device; copied, never modified. Layers
    that are still loading are placed when they are needed; where they can't be loaded,
    `KVRecordError` is raised then.
    What stands at fresh positions is undefined until they are computed; between chunks, zeros.
    """
    buffer = executor.new_buffer(capacity)
    at_once = can_gather(executor.model.device) and not any(kv.rotated for kv in kvs)
    write = partial(_write_at_once if at_once else _write_spans, executor, prompt, kvs, buffer)
    buffer.fill(write, lambda layers: all(kv.ready(layers) for kv in kvs))
    buffer.clear(separators(prompt))
    start.place(buffer)
    return buffer


@torch.inference_mode()
def to_resident(model: CausalModel, kv: LayeredKV, correction: Correction | None = None) -> ChunkKV:
    """A chunk's KV on the model's device in the form that requests attend to in place.

    kv: with unrotated keys, on any device; it stays as it is. correction: added to it. Requests may
    share the result. Raises `KVRecordError` where its layers can't be loaded.
    """
    if correction is not None:
        kv = CorrectedKV(kv, correction)
    keys, values = kv.tensors(slice(None), model.device)
    rotated = rotate(keys, model.rotation(range(len(kv.token_ids)))).to(model.dtype)
    return ChunkKV(
        key=kv.key,
        kind=kv.kind,
        token_ids=kv.token_ids,
        keys=rotated.contiguous(),
        # Copied, so that values are aligned and don't keep the whole record's memory alive.
        values=values.to(model.dtype, copy=True, memory_format=torch.contiguous_format),
        rotated=True,
    )


class SharedChunks:
    """Shared chunks of a prompt, in place. Each pass has private room for its rows."""

    def __init__(
        self,
        executor: Executor,
        prompt: AssembledPrompt,
        kvs: Sequence[ChunkKV],
        capacity: int,
        start: KnownStart = NOTHING_KNOWN,
    ) -> None:
        """kvs: one for each of the prompt's spans, as `to_resident` gives them; never modified."""
        self.capacity = capacity
        self._start = start
        self._executor = executor
        self._prompt = prompt
        self._kvs = kvs
        model = executor.model
        segments = [
            *start.segments(),
            *(
                Segment(kv.keys, kv.values, span.source_start, span.start, span.length)
                for span, kv in zip(prompt.spans, kvs, strict=True)
            ),
        ]
        shifts = [segment.shift for segment in segments]
        rotations = RotaryTable.of(model.rotation(shifts), model.head_dim)
        self._segments = Segments(segments, rotations)

    def with_private_tokens(self, positions: Sequence[int]) -> InPlaceKV:
        """KV with room of its own for these positions, which hides what the chunks have there."""
        layers, heads, _, size = self._kvs[0].keys.shape
        room = (layers, heads, len(positions), size)
        keys, values = (self._kvs[0].keys.new_zeros(room) for _ in range(2))
        return InPlaceKV(self._segments, positions, keys, values)

    def placed(self, positions: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of what chunks have at these positions, rotated to them, [L, Hkv, T, D] each."""
        spans, model = self._prompt.spans, self._executor.model
        at = [bisect_right(spans, p, key=lambda span: span.start) - 1 for p in positions]
        shifts = [spans[i].start - spans[i].source_start for i in at]
        tokens = [p - shift for p, shift in zip(positions, shifts, strict=True)]
        keys, values = (
            torch.stack([kv[:, :, token] for kv, token in zip(kvs, tokens, strict=True)], dim=2)
            for kvs in ([self._kvs[i].keys for i in at], [self._kvs[i].values for i in at])
        )
        return rotate(keys, model.rotation(shifts)).to(model.dtype), values

    def as_buffer(self) -> KVBuffer:
        """A copy with a slot for every position."""
        return place_in_buffer(self._executor, self._prompt, self._kvs, self.capacity, self._start)

    def wait(self) -> None:
        """Returns at once: shared chunks are there."""


def separators(prompt: AssembledPrompt) -> list[int]:
    """Positions of short runs of fresh tokens between chunks."""
    gaps = (range(before.stop, after.start) for before, after in pairwise(prompt.spans))
    return [position for gap in gaps if len(gap) <= MAX_SEPARATOR_TOKENS for position in gap]


def _write_spans(
    executor: Executor,
    prompt: AssembledPrompt,
    kvs: Sequence[LayeredKV],
    buffer: KVBuffer,
    layers: slice,
) -> None:
    """Place layers span by span: one fits in a CPU's cache, all of them together don't."""
    model = executor.model
    to_prompt = model.rotation(torch.arange(len(prompt), device=model.device))
    moved = None
    for span, kv in zip(prompt.spans, kvs, strict=True):
        if kv is not moved:
            moved = kv  # whole, since only what is contiguous moves without waiting
            keys, values = kv.tensors(layers, model.device)
        source = slice(span.source_start, span.source_start + span.length)
        rotation = to_prompt.at(slice(span.start, span.stop))
        if kv.rotated:  # one rotation for all, from the chunk's start to the prompt's
            rotation = model.rotation((span.start - span.source_start,))
        buffer.place(span.start, keys[:, :, source], values[:, :, source], rotation, layers)


def _write_at_once(
    executor: Executor,
    prompt: AssembledPrompt,
    kvs: Sequence[LayeredKV],
    buffer: KVBuffer,
    layers: slice,
) -> None:
    """Copy each chunk to the device, then place layers of all spans with one kernel."""
    model = executor.model
    moved = {id(kv): kv.tensors(layers, model.device) for kv in kvs}
    if len({keys.dtype for keys, _ in moved.values()}) > 1:  # e.g. some of them quantised
        moved = {n: (k.to(model.dtype), v.to(model.dtype)) for n, (k, v) in moved.items()}
    segments = [
        Segment(*moved[id(kv)], span.source_start, span.start, span.length)
        for span, kv in zip(prompt.spans, kvs, strict=True)
    ]
    rotation = model.rotation(torch.arange(len(prompt), device=model.device))
    rotations = RotaryTable.of(rotation.of_layers(layers), model.head_dim)
    buffer.place_all(segments, rotations, layers)
