"""AssembledPrompt + TokenSelection -> warm KV and the answer's first logits.

The online half of the method (arXiv 2601.12904, online stage). Chunk KV is placed in a buffer whose
slot i is the prompt's position i; or it stays where it lies, shared with other requests.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Protocol

import torch

from fusionrag_integrations.carryover import Carryover
from fusionrag_integrations.kernels import Segment, Segments, can_gather
from fusionrag_integrations.model import (
    CausalModel,
    InPlaceKV,
    KVBuffer,
    SequenceKV,
    ViewCapture,
)
from fusionrag_integrations.observed import ObservedKV
from fusionrag_integrations.rope import TurnTables, rotate
from fusionrag_integrations.staleness import Staleness
from fusionrag_integrations.timing import settle
from fusionrag_integrations.types import (
    AssembledPrompt,
    ChunkKV,
    LayeredKV,
    LayerView,
    TokenSelection,
)

EARLY_LAYERS = 2  # CacheBlend's: it compares at layer 1
SEPARATOR = 4  # tokens between chunks, at most, that are taken for layout rather than content


class PromptKV(Protocol):
    """KV of a prompt's chunks, and room for what is computed over it."""

    @property
    def capacity(self) -> int:
        """How many tokens the prompt and its answer may have."""
        ...

    def owning(self, positions: Sequence[int]) -> SequenceKV:
        """What passes over rows at these positions, ascending, write to and read."""
        ...

    def placed(self) -> KVBuffer:
        """The same with a slot for every position."""
        ...


def lay(
    model: CausalModel, prompt: AssembledPrompt, kvs: Sequence[LayeredKV], capacity: int
) -> PromptKV:
    """The prompt's chunks where they lie, if they all lie on the model's device as `resident`
    left them; else as `place` puts them.
    """
    there = [
        kv
        for kv in kvs
        if isinstance(kv, ChunkKV) and kv.rotated and kv.keys.device == model.device
    ]
    if there and len(there) == len(kvs):
        return ChunksInPlace(model, prompt, there, capacity)
    return place(model, prompt, kvs, capacity)


@torch.inference_mode()
def resident(model: CausalModel, kv: LayeredKV) -> ChunkKV:
    """A chunk's KV on the model's device in the form that requests attend to where it lies.

    kv: in the canonical frame, on any device; it stays as it is. Requests may share the result.
    Raises `KVRecordError` where its layers can't come.
    """
    keys, values = kv.tensors(slice(None), model.device)
    turned = rotate(keys, model.rotation(range(len(kv.token_ids)))).to(model.dtype)
    return ChunkKV(
        key=kv.key,
        kind=kv.kind,
        token_ids=kv.token_ids,
        keys=turned.contiguous(),
        # A copy of its own: what was moved is part of a whole record, and not aligned.
        values=values.to(model.dtype, copy=True, memory_format=torch.contiguous_format),
        rotated=True,
    )


@torch.inference_mode()
def place(
    model: CausalModel, prompt: AssembledPrompt, kvs: Sequence[LayeredKV], capacity: int
) -> KVBuffer:
    """A buffer of `capacity` tokens that holds each span's KV, rotated to its positions.

    kvs: one for each of the prompt's spans, in order, on any device; copied, never modified. Layers
    that are on their way are placed when they are needed; where they can't come, `KVRecordError`
    is raised then.
    What stands at fresh positions is undefined until they are computed; between chunks, zeros.
    """
    buffer = model.new_buffer(capacity)
    at_once = can_gather(model.device) and not any(kv.rotated for kv in kvs)
    write = partial(_write_at_once if at_once else _write_spans, model, prompt, kvs, buffer)
    buffer.fill(write, lambda layers: all(kv.ready(layers) for kv in kvs))
    buffer.clear(_separators(prompt))
    return buffer


def _write_spans(
    model: CausalModel,
    prompt: AssembledPrompt,
    kvs: Sequence[LayeredKV],
    buffer: KVBuffer,
    layers: slice,
) -> None:
    """Place layers span by span: one fits in a CPU's cache, all of them together don't."""
    rotation = model.rotation(torch.arange(len(prompt), device=model.device))
    moved = None
    for span, kv in zip(prompt.spans, kvs, strict=True):
        if kv is not moved:
            moved = kv  # whole, since only what is contiguous moves without waiting
            keys, values = kv.tensors(layers, model.device)
        source = slice(span.source_start, span.source_start + span.length)
        turn = rotation.at(slice(span.start, span.stop))
        if kv.rotated:  # one turn for all, from the chunk's start to the prompt's
            turn = model.rotation((span.start - span.source_start,))
        buffer.place(span.start, keys[:, :, source], values[:, :, source], turn, layers)


def _write_at_once(
    model: CausalModel,
    prompt: AssembledPrompt,
    kvs: Sequence[LayeredKV],
    buffer: KVBuffer,
    layers: slice,
) -> None:
    """Place layers of all spans by one kernel, behind a copy a chunk to the device."""
    moved = {id(kv): kv.tensors(layers, model.device) for kv in kvs}
    if len({keys.dtype for keys, _ in moved.values()}) > 1:  # e.g. some of a compact store
        moved = {n: (k.to(model.dtype), v.to(model.dtype)) for n, (k, v) in moved.items()}
    segments = [
        Segment(*moved[id(kv)], span.source_start, span.start, span.length)
        for span, kv in zip(prompt.spans, kvs, strict=True)
    ]
    rotation = model.rotation(torch.arange(len(prompt), device=model.device))
    turns = TurnTables.of(rotation.of_layers(layers), model.head_dim)
    buffer.place_all(segments, turns, layers)


class ChunksInPlace:
    """Shared chunks of a prompt where they lie. Each pass has room of its own, for its rows."""

    def __init__(
        self,
        model: CausalModel,
        prompt: AssembledPrompt,
        kvs: Sequence[ChunkKV],
        capacity: int,
    ) -> None:
        """kvs: one for each of the prompt's spans, as `resident` gives them; never modified."""
        self.capacity = capacity
        self._model = model
        self._prompt = prompt
        self._kvs = kvs
        shifts = [span.start - span.source_start for span in prompt.spans]
        turns = TurnTables.of(model.rotation(shifts), model.head_dim)
        segments = [
            Segment(kv.keys, kv.values, span.source_start, span.start, span.length)
            for span, kv in zip(prompt.spans, kvs, strict=True)
        ]
        self._segments = Segments(segments, turns)

    def owning(self, positions: Sequence[int]) -> InPlaceKV:
        """KV that holds these positions' tokens itself. What segments have there is stale."""
        layers, heads, _, size = self._kvs[0].keys.shape
        room = (layers, heads, len(positions), size)
        keys, values = (self._kvs[0].keys.new_zeros(room) for _ in range(2))
        return InPlaceKV(self._segments, positions, keys, values)

    def placed(self) -> KVBuffer:
        """A copy with a slot for every position."""
        return place(self._model, self._prompt, self._kvs, self.capacity)


@dataclass(frozen=True, slots=True, eq=False)
class Warm:
    """A prompt that is computed: its last logits, and all KV.

    logits: [1 + A, V], behind the prompt and behind each of A tokens that were read after it.
    """

    logits: torch.Tensor
    kv: SequenceKV


class PlacedPrompt:
    """A prompt over its placed KV: first looked at by a selector, then recomputed. Used once.

    It is the `Probe` of selectors. What they ask for is computed when they ask; `probe_ms` and
    `token_layers` add up what was done so far.
    """

    def __init__(
        self,
        model: CausalModel,
        prompt: AssembledPrompt,
        kv: PromptKV,
        *,
        corrected: bool = False,
    ) -> None:
        """corrected: whether what recomputed tokens are off by is carried over to the others."""
        self._model = model
        self._prompt = prompt
        self._kv = kv
        self._corrected = corrected
        self._early: torch.Tensor | None = None  # [N, hidden] behind the early layers
        self._early_layers = min(EARLY_LAYERS, model.num_layers)
        self._computed = range(0)  # of what stands before the first chunk: over it nothing is stale
        self.probe_ms = 0.0
        self.token_layers = 0

    @property
    def num_layers(self) -> int:
        return self._model.num_layers

    @property
    def global_layers(self) -> tuple[int, ...]:
        return self._model.global_layers

    def suffix(self, layers: Sequence[int]) -> list[LayerView]:
        """What the tokens behind the last chunk ask in `layers`, over the KV as it was placed.

        The fresh tokens have seen stale KV, and are computed again with the selected tokens. What
        only separates chunks isn't run: zeros stand for it.
        """
        fresh = self._prompt.fresh_positions
        rows = sorted(set(fresh).difference(_separators(self._prompt)))
        with self._probing(len(rows) * (max(layers) + 1)):
            return self._look(layers, rows, self._kv.owning(fresh))

    def watched_suffix(
        self, layers: Sequence[int], watched: Sequence[int]
    ) -> tuple[list[LayerView], torch.Tensor]:
        """The same with chunk tokens run along, and what their placed KV is off by.

        watched: their positions. Off by: as `Staleness` measures it, float32 [max(layers) + 1,
        watched]. What was placed stands again afterwards. Separators are run here: tokens right
        behind them would be off by their absence.
        """
        rows = sorted({*self._prompt.fresh_positions, *watched})
        with self._probing(len(rows) * (max(layers) + 1)):
            self._kv = buffer = self._kv.placed()  # shared chunks are never written to
            staleness = Staleness(watched, self._model.device)
            views = self._look(layers, rows, ObservedKV(buffer, watched, staleness))
            staleness.put_back(buffer)
        return views, staleness.by_layer()

    @torch.inference_mode()
    def begin_as(self, other: PlacedPrompt) -> None:
        """Take what stands before the first chunk from the same prompt, where it was looked at."""
        mine, theirs, length = self._kv.placed(), other._kv.placed(), len(other._computed)
        mine.keys[:, :, :length] = theirs.keys[:, :, :length]
        mine.values[:, :, :length] = theirs.values[:, :, :length]
        self._kv, self._computed = mine, other._computed

    def _look(self, layers: Sequence[int], rows: Sequence[int], kv: SequenceKV) -> list[LayerView]:
        start, stop = 0, 0
        if self._prompt.spans:
            start, stop = self._prompt.spans[0].start, self._prompt.spans[-1].stop
        capture = ViewCapture(bisect_left(rows, stop), frozenset(layers))
        depth = max(layers) + 1
        ids = [self._prompt.token_ids[p] for p in rows]
        self._model.forward_lower(ids, rows, kv, depth, capture)
        if depth == self._model.num_layers and isinstance(self._kv, KVBuffer):
            self._computed = range(start)
        return [capture.views[layer] for layer in layers]

    def early_deviation(self) -> torch.Tensor:
        """Squared distance of true from placed K and V at layer 1, float32 [C].

        From then on the true KV of layers 0 and 1 stands in its place for every token.
        """
        self._kv = buffer = self._kv.placed()
        positions = list(self._prompt.chunk_positions)
        kv = buffer.layer(self._early_layers - 1)
        placed = [t[:, positions].float() for t in kv]
        every = range(len(self._prompt))
        with self._probing(len(every) * self._early_layers):
            self._early = self._model.forward_lower(
                self._prompt.token_ids, every, buffer, self._early_layers
            )
            moved = [t[:, positions] - old for t, old in zip(kv, placed, strict=True)]
            return torch.stack([difference.square().sum((0, 2)) for difference in moved]).sum(0)

    def recompute(self, selection: TokenSelection, answer: Sequence[int] = ()) -> Warm:
        """Compute the selected and the fresh tokens at their true positions.

        Each row attends to every position up to its own; its keys and values stand for what was
        there. Layers that ran over the whole prompt already are not run again, nor is what stands
        before the first chunk, where all layers were looked at. What the selected tokens turn out
        to be off by is carried over to the others of their chunks, if KV is `corrected`.

        answer: tokens that are read behind the prompt in the same pass, to see what the model makes
        of them. They count as no work.
        """
        end = len(self._prompt)
        fresh = set(self._prompt.fresh_positions).difference(self._computed)
        rows = sorted({*fresh, *selection.positions})
        kv, passed = self._written([*rows, *range(end, self._kv.capacity)], selection)
        layers = self._model.num_layers
        read = range(end, end + len(answer))
        last = 1 + len(answer)
        if self._early is None:
            self.token_layers += len(rows) * layers
            ids = [*(self._prompt.token_ids[p] for p in rows), *answer]
            return Warm(self._model.forward_rows(ids, [*rows, *read], passed, last), kv)
        early = self._early_layers
        self.token_layers += len(rows) * (layers - early)
        hidden = self._early[rows]
        if answer:
            behind = self._model.forward_lower(answer, read, kv, early)
            hidden = torch.cat([hidden, behind])
        logits = self._model.forward_upper(hidden, [*rows, *read], passed, early, last)
        return Warm(logits, kv)

    def _written(
        self, own: Sequence[int], selection: TokenSelection
    ) -> tuple[SequenceKV, SequenceKV]:
        """KV that holds the `own` positions' tokens, and the same for the pass that recomputes."""
        carryover = Carryover.of(self._model, self._prompt, selection) if self._corrected else None
        if carryover:
            buffer = self._kv.placed()  # shared chunks are never written to
            return buffer, ObservedKV(buffer, carryover.positions, carryover)
        kv = self._kv.owning(own)
        return kv, kv

    @contextmanager
    def _probing(self, token_layers: int) -> Iterator[None]:
        started = perf_counter()
        yield
        settle(self._model.device)
        self.probe_ms += (perf_counter() - started) * 1e3
        self.token_layers += token_layers


def _separators(prompt: AssembledPrompt) -> list[int]:
    """Positions of short runs of fresh tokens between chunks."""
    gaps = (range(before.stop, after.start) for before, after in pairwise(prompt.spans))
    return [position for gap in gaps if len(gap) <= SEPARATOR for position in gap]
