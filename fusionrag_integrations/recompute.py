"""AssembledPrompt + TokenSelection -> a warm buffer and the answer's first logits.

The online half of the method (arXiv 2601.12904, online stage). One table maps everything: the
buffer's slot i is the prompt's position i.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from time import perf_counter

import torch

from fusionrag_integrations.model import CausalModel, KVBuffer, ViewCapture
from fusionrag_integrations.timing import settle
from fusionrag_integrations.types import AssembledPrompt, ChunkKV, LayerView, TokenSelection

EARLY_LAYERS = 2  # CacheBlend's: it compares at layer 1
SEPARATOR = 4  # tokens between chunks, at most, that are taken for layout rather than content


@torch.inference_mode()
def place(
    model: CausalModel, prompt: AssembledPrompt, kvs: Sequence[ChunkKV], capacity: int
) -> KVBuffer:
    """A buffer of `capacity` tokens that holds each span's KV, rotated to its positions.

    kvs: one for each of the prompt's spans, in order, on any device; copied, never modified.
    What stands at fresh positions is undefined until they are computed; between chunks, zeros.
    """
    buffer = model.new_buffer(capacity)

    def write(layers: slice) -> None:
        rotation = model.rotation(torch.arange(len(prompt), device=model.device))
        moved = None
        # Span by span: one fits in a CPU's cache, all of them together don't.
        for span, kv in zip(prompt.spans, kvs, strict=True):
            if kv is not moved:
                moved = kv  # whole, since only what is contiguous moves without waiting
                keys = kv.keys[layers].to(model.device, non_blocking=True)
                values = kv.values[layers].to(model.device, non_blocking=True)
            source = slice(span.source_start, span.source_start + span.length)
            turn = rotation.at(slice(span.start, span.stop))
            buffer.place(span.start, keys[:, :, source], values[:, :, source], turn, layers)

    buffer.fill(write)
    buffer.clear(_separators(prompt))
    return buffer


class PlacedPrompt:
    """A prompt over its placed KV: first looked at by a selector, then recomputed. Used once.

    It is the `Probe` of selectors. What they ask for is computed when they ask; `probe_ms` and
    `token_layers` add up what was done so far.
    """

    def __init__(self, model: CausalModel, prompt: AssembledPrompt, buffer: KVBuffer) -> None:
        self._model = model
        self._prompt = prompt
        self._buffer = buffer
        self._early: torch.Tensor | None = None  # [N, hidden] behind the early layers
        self._early_layers = min(EARLY_LAYERS, model.num_layers)
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

        Writes the fresh tokens' KV of those layers to the buffer. They have seen stale KV, and
        are computed again with the selected tokens. What only separates chunks isn't run: what
        stands there, zeros if they were placed, is seen as it is.
        """
        rows = sorted(set(self._prompt.fresh_positions).difference(_separators(self._prompt)))
        begin = self._prompt.spans[-1].stop if self._prompt.spans else 0
        capture = ViewCapture(bisect_left(rows, begin), frozenset(layers))
        depth = max(layers) + 1
        ids = [self._prompt.token_ids[p] for p in rows]
        with self._probing(len(rows) * depth):
            self._model.forward_lower(ids, rows, self._buffer, depth, capture)
        return [capture.views[layer] for layer in layers]

    def early_deviation(self) -> torch.Tensor:
        """Squared distance of true from placed K and V at layer 1, float32 [C].

        From then on the buffer holds the true KV of layers 0 and 1 for every token.
        """
        positions = list(self._prompt.chunk_positions)
        kv = self._buffer.layer(self._early_layers - 1)
        placed = [t[:, positions].float() for t in kv]
        every = range(len(self._prompt))
        with self._probing(len(every) * self._early_layers):
            self._early = self._model.forward_lower(
                self._prompt.token_ids, every, self._buffer, self._early_layers
            )
            moved = [t[:, positions] - old for t, old in zip(kv, placed, strict=True)]
            return torch.stack([difference.square().sum((0, 2)) for difference in moved]).sum(0)

    def recompute(self, selection: TokenSelection) -> torch.Tensor:
        """Compute the selected and the fresh tokens at their true positions; returns logits [V].

        Each row attends to every position up to its own; its keys and values replace what the
        buffer held there. Layers that ran over the whole prompt already are not run again.
        """
        rows = sorted({*self._prompt.fresh_positions, *selection.positions})
        layers = self._model.num_layers
        if self._early is None:
            self.token_layers += len(rows) * layers
            ids = [self._prompt.token_ids[p] for p in rows]
            return self._model.forward_rows(ids, rows, self._buffer)
        self.token_layers += len(rows) * (layers - self._early_layers)
        hidden = self._early[rows]
        return self._model.forward_upper(hidden, rows, self._buffer, self._early_layers)

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
