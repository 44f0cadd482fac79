"""AssembledPrompt + TokenSelection -> a warm buffer and the answer's first logits.

The online half of the method (arXiv 2601.12904, online stage). One table maps everything: the
buffer's slot i is the prompt's position i.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from time import perf_counter

import torch

from fusionrag_integrations.model import CausalModel, KVBuffer, QueryCapture
from fusionrag_integrations.timing import settle
from fusionrag_integrations.types import AssembledPrompt, ChunkKV, TokenSelection


@torch.inference_mode()
def place(
    model: CausalModel, prompt: AssembledPrompt, kvs: Sequence[ChunkKV], capacity: int
) -> KVBuffer:
    """A buffer of `capacity` tokens that holds each span's KV, rotated to its positions.

    kvs: one for each of the prompt's spans, in order, on any device; copied, never modified.
    What stands at fresh positions is undefined until they are computed.
    """
    buffer = model.new_buffer(capacity)
    rotation = model.rotation(torch.arange(len(prompt)))
    # Span by span: one fits in a CPU's cache, all of them together don't.
    for span, kv in zip(prompt.spans, kvs, strict=True):
        source = slice(span.source_start, span.source_start + span.length)
        turn = rotation.at(slice(span.start, span.stop))
        buffer.place(span.start, kv.keys[:, :, source], kv.values[:, :, source], turn)
    return buffer


class PlacedProbe:
    """Signals about a prompt over its placed KV, each computed once, when first asked for.

    The queries come from a pass over the fresh tokens alone, at their true positions, which
    sees the chunks' KV as it was placed.
    """

    def __init__(self, model: CausalModel, prompt: AssembledPrompt, buffer: KVBuffer) -> None:
        self._model = model
        self._prompt = prompt
        self._buffer = buffer
        self.elapsed_ms = 0.0

    @property
    def num_layers(self) -> int:
        return self._model.num_layers

    def question_queries(self, layer: int) -> torch.Tensor:
        """Rotated queries [Hq, Tq, D] of the question's tokens at `layer`."""
        return self._fresh_pass[0].queries[layer]

    def placed_keys(self, layer: int) -> torch.Tensor:
        """Rotated keys [Hkv, N, D] at `layer`: of chunks as placed, of fresh tokens computed."""
        self._fresh_pass  # noqa: B018  fresh tokens have no keys before this pass
        return self._buffer.keys[layer, :, : len(self._prompt)]

    def scaling(self, layer: int) -> float:
        """What `layer` multiplies QK by."""
        return self._fresh_pass[0].scalings[layer]

    @property
    def fresh_logits(self) -> torch.Tensor | None:
        """Logits [V] behind the prompt, if the fresh pass has run."""
        return self._fresh_pass[1] if "_fresh_pass" in self.__dict__ else None

    @cached_property
    def _fresh_pass(self) -> tuple[QueryCapture, torch.Tensor]:
        fresh = self._prompt.fresh_positions
        start, stop = self._prompt.question
        first = fresh.index(start)
        capture = QueryCapture(slice(first, first + stop - start))
        ids = [self._prompt.token_ids[p] for p in fresh]
        started = perf_counter()
        logits = self._model.forward_rows(ids, fresh, self._buffer, capture)
        settle(self._model.device)
        self.elapsed_ms = (perf_counter() - started) * 1e3
        return capture, logits


def recompute(
    model: CausalModel,
    prompt: AssembledPrompt,
    selection: TokenSelection,
    buffer: KVBuffer,
    probe: PlacedProbe,
) -> torch.Tensor:
    """Compute the selected and the fresh tokens at their true positions; returns logits [V].

    Each row attends to every position up to its own; its keys and values replace what the
    buffer held there. Where the probe has computed the fresh tokens already, only those behind
    the first selected token are affected by the selection, and only those run again.
    """
    done = probe.fresh_logits
    if done is not None and not selection.positions:
        return done
    fresh = prompt.fresh_positions
    if done is not None:
        fresh = tuple(p for p in fresh if p > selection.positions[0])
    rows = sorted({*fresh, *selection.positions})
    return model.forward_rows([prompt.token_ids[p] for p in rows], rows, buffer)
