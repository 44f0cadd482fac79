"""What a strategy does to the KV of one prompt, against full attention over the same prompt.

deviation   by layer, how far the chunk tokens' K and V are from the true ones, squared and relative
            to their size: what the paper's Figure 16 and CacheBlend measure
overlap     how many of the selected tokens an oracle would have taken, which knows the true KV:
            those that are furthest off before anything is recomputed, or those that get most of the
            suffix's attention under full attention
places      where in their chunks the selected tokens lie, in tenths
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.execution.buffer import KVBuffer
from fusionrag_integrations.execution.chunk_kv import deviation
from fusionrag_integrations.execution.executor import Executor, SequenceInput
from fusionrag_integrations.execution.placement import place_in_buffer
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.selectors import make_selector
from fusionrag_integrations.selectors.attention_weights import weights
from fusionrag_integrations.selectors.selection import Selector, TokenSelection
from fusionrag_integrations.serving.loading import LoadedPrompt
from fusionrag_integrations.serving.settings import AnswerSettings

PLACES = 10


@dataclass(frozen=True, slots=True)
class Inspection:
    """deviation: by layer, of K and V together. Overlaps are shares of the selected tokens, and
    None where nothing is selected. places: counts.
    """

    deviation: tuple[float, ...]
    overlap_deviation: float | None
    overlap_attention: float | None
    places: tuple[int, ...]


class Truth:
    """The KV of one prompt under full attention, and what an oracle makes of it."""

    def __init__(self, engine: FusionEngine, prompt: Prompt, settings: AnswerSettings) -> None:
        self._engine = engine
        self._loaded = engine.load(prompt, settings)
        self._positions = list(self._loaded.prompt.chunk_positions)
        self.has_chunks = bool(self._positions)
        self._true = _true_kv(engine.executor, self._loaded.prompt)
        stale = place_in_buffer(
            engine.executor, self._loaded.prompt, self._loaded.kvs, self._true.capacity
        )
        self._stale = self._deviation(stale).sum(0)
        self._attention = self._true_attention()

    def inspect(self, settings: AnswerSettings) -> Inspection:
        """What the strategy with these settings does."""
        selector = make_selector(settings.selector, settings.ratio, self._engine.calibration)
        buffer, selection = _recomputed(
            self._engine.executor, self._loaded, selector, settings.corrected
        )
        return Inspection(
            deviation=tuple(self._deviation(buffer).mean(1).tolist()),
            overlap_deviation=self._overlap(selection, self._stale),
            overlap_attention=self._overlap(selection, self._attention),
            places=by_tenths(self._loaded.prompt, selection),
        )

    def _deviation(self, buffer: KVBuffer) -> torch.Tensor:
        """Of the chunk tokens, from the true KV, [L, C]."""
        return deviation(*(self._of_chunks(kv) for kv in (buffer, self._true)))

    def _of_chunks(self, buffer: KVBuffer) -> tuple[torch.Tensor, torch.Tensor]:
        return buffer.keys[:, :, self._positions], buffer.values[:, :, self._positions]

    def _true_attention(self) -> torch.Tensor:
        """The suffix's attention to each chunk token, mean over layers, [C]."""
        executor, prompt = self._engine.executor, self._loaded.prompt
        layers = range(executor.model.num_layers)
        views = PlacedPrompt(executor, prompt, self._true.copy()).suffix(layers)
        return torch.stack([weights(v).mean((0, 1))[self._positions] for v in views]).mean(0)

    def _overlap(self, selection: TokenSelection, wanted: torch.Tensor) -> float | None:
        if not selection.positions:
            return None
        best = wanted.topk(len(selection)).indices.tolist()
        oracle = {self._positions[i] for i in best}
        return len(oracle & set(selection.positions)) / len(selection)


def _true_kv(executor: Executor, prompt: AssembledPrompt) -> KVBuffer:
    buffer = executor.new_buffer(len(prompt))
    executor.run([SequenceInput(prompt.token_ids, range(len(prompt)), buffer)])
    return buffer


def _recomputed(
    executor: Executor, loaded: LoadedPrompt, selector: Selector, corrected: bool
) -> tuple[KVBuffer, TokenSelection]:
    buffer = place_in_buffer(executor, loaded.prompt, loaded.kvs, len(loaded.prompt))
    placed = PlacedPrompt(executor, loaded.prompt, buffer, corrected=corrected)
    selection = selector.select(loaded.prompt, placed)
    placed.recompute(selection)
    return buffer, selection


def by_tenths(prompt: AssembledPrompt, selection: TokenSelection) -> tuple[int, ...]:
    """How many selected tokens are in each tenth of their chunk."""
    counts = [0] * PLACES
    selected = set(selection.positions)
    for span in prompt.spans:
        size = len(span.record.encoded.token_ids)
        for position in selected.intersection(range(span.start, span.stop)):
            place_in_chunk = span.source_start + position - span.start
            counts[PLACES * place_in_chunk // size] += 1
    return tuple(counts)
