"""AssembledPrompt + TokenSelection -> PrefillOutput: KV and the answer's first logits.

The online half of the method (arXiv 2601.12904, online stage), over KV that `placement` gives.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch

from fusionrag_integrations.execution.buffer import KVBuffer, SequenceKV
from fusionrag_integrations.execution.carryover import Carryover
from fusionrag_integrations.execution.devices import settle
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.rows_pass import ViewCapture
from fusionrag_integrations.execution.observed import ObservedKV
from fusionrag_integrations.execution.placement import PromptKV, separators
from fusionrag_integrations.execution.staleness import Staleness
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.probe import LayerView
from fusionrag_integrations.selectors.selection import TokenSelection

EARLY_LAYERS = 2  # CacheBlend's: it compares at layer 1


@dataclass(frozen=True, slots=True, eq=False)
class PrefillOutput:
    """A prompt that is computed: its last logits, and all KV.

    logits: [1 + A, V], behind the prompt and behind each of A tokens that were read after it.
    """

    logits: torch.Tensor
    kv: SequenceKV


class PlacedPrompt:
    """A prompt over its placed KV: first probed by a selector, then recomputed. Used once.

    It is the `Probe` of selectors. What they ask for is computed when they ask; `probe_ms` and
    `token_layers` add up what was done so far.
    """

    def __init__(
        self,
        executor: Executor,
        prompt: AssembledPrompt,
        kv: PromptKV,
        *,
        corrected: bool = False,
    ) -> None:
        """corrected: whether what recomputed tokens are off by is carried over to the others."""
        self._executor = executor
        self._prompt = prompt
        self._kv = kv
        self._corrected = corrected
        self._early: torch.Tensor | None = None  # [N, hidden] behind the early layers
        self._early_layers = min(EARLY_LAYERS, executor.model.num_layers)
        self._computed = range(0)  # of what stands before the first chunk: over it nothing is stale
        self.probe_ms = 0.0
        self.token_layers = 0

    @property
    def num_layers(self) -> int:
        return self._executor.model.num_layers

    @property
    def global_layers(self) -> tuple[int, ...]:
        return self._executor.model.global_layers

    def suffix(self, layers: Sequence[int]) -> list[LayerView]:
        """What the tokens behind the last chunk ask in `layers`, over the KV as it was placed.

        The fresh tokens have seen stale KV, and are computed again with the selected tokens. What
        only separates chunks isn't run: zeros stand for it.
        """
        fresh = self._prompt.fresh_positions
        rows = sorted(set(fresh).difference(separators(self._prompt)))
        with self._probing(len(rows) * (max(layers) + 1)):
            return self._views(layers, rows, self._kv.with_private_tokens(fresh))

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
            self._kv = buffer = self._kv.as_buffer()  # shared chunks are never written to
            staleness = Staleness(watched, self._executor.model.device)
            views = self._views(layers, rows, ObservedKV(buffer, watched, staleness))
            staleness.put_back(buffer)
        return views, staleness.by_layer()

    @torch.inference_mode()
    def copy_prefix(self, other: PlacedPrompt) -> None:
        """What `other`, the same prompt, computed before the first chunk isn't computed again."""
        target, source, length = self._kv.as_buffer(), other._kv.as_buffer(), len(other._computed)
        target.keys[:, :, :length] = source.keys[:, :, :length]
        target.values[:, :, :length] = source.values[:, :, :length]
        self._kv, self._computed = target, other._computed

    def _views(self, layers: Sequence[int], rows: Sequence[int], kv: SequenceKV) -> list[LayerView]:
        start, stop = 0, 0
        if self._prompt.spans:
            start, stop = self._prompt.spans[0].start, self._prompt.spans[-1].stop
        capture = ViewCapture(bisect_left(rows, stop), frozenset(layers))
        depth = max(layers) + 1
        ids = [self._prompt.token_ids[p] for p in rows]
        self._executor.forward_lower(ids, rows, kv, depth, capture)
        if depth == self._executor.model.num_layers and isinstance(self._kv, KVBuffer):
            self._computed = range(start)
        return [capture.views[layer] for layer in layers]

    def early_deviation(self) -> torch.Tensor:
        """Squared distance of true from placed K and V at layer 1, float32 [C].

        From then on the true KV of layers 0 and 1 stands in its place for every token.
        """
        self._kv = buffer = self._kv.as_buffer()
        positions = list(self._prompt.chunk_positions)
        kv = buffer.layer(self._early_layers - 1)
        placed = [t[:, positions].float() for t in kv]
        every = range(len(self._prompt))
        with self._probing(len(every) * self._early_layers):
            self._early = self._executor.forward_lower(
                self._prompt.token_ids, every, buffer, self._early_layers
            )
            moved = [t[:, positions] - old for t, old in zip(kv, placed, strict=True)]
            return torch.stack([difference.square().sum((0, 2)) for difference in moved]).sum(0)

    def recompute(self, selection: TokenSelection, answer: Sequence[int] = ()) -> PrefillOutput:
        """Compute the selected and the fresh tokens at their true positions.

        Each row attends to every position up to its own; its keys and values stand for what was
        there. Layers that ran over the whole prompt already are not run again, nor is what stands
        before the first chunk, where a probe ran all layers. What the selected tokens turn out
        to be off by is carried over to the others of their chunks, if KV is `corrected`.

        answer: tokens that are read behind the prompt in the same pass, to see what the model makes
        of them. They count as no work.
        """
        end = len(self._prompt)
        fresh = set(self._prompt.fresh_positions).difference(self._computed)
        rows = sorted({*fresh, *selection.positions})
        kv, passed = self._written([*rows, *range(end, self._kv.capacity)], selection)
        layers = self._executor.model.num_layers
        read = range(end, end + len(answer))
        last = 1 + len(answer)
        if self._early is None:
            self.token_layers += len(rows) * layers
            ids = [*(self._prompt.token_ids[p] for p in rows), *answer]
            return PrefillOutput(self._executor.forward_rows(ids, [*rows, *read], passed, last), kv)
        early = self._early_layers
        self.token_layers += len(rows) * (layers - early)
        hidden = self._early[rows]
        if answer:
            following = self._executor.forward_lower(answer, read, kv, early)
            hidden = torch.cat([hidden, following])
        logits = self._executor.forward_upper(hidden, [*rows, *read], passed, early, last)
        return PrefillOutput(logits, kv)

    def _written(
        self, positions: Sequence[int], selection: TokenSelection
    ) -> tuple[SequenceKV, SequenceKV]:
        """KV that holds these positions' tokens, and the same for the pass that recomputes."""
        model = self._executor.model
        if self._corrected and (carryover := Carryover.of(model, self._prompt, selection)):
            buffer = self._kv.as_buffer()  # shared chunks are never written to
            return buffer, ObservedKV(buffer, carryover.positions, carryover)
        kv = self._kv.with_private_tokens(positions)
        return kv, kv

    @contextmanager
    def _probing(self, token_layers: int) -> Iterator[None]:
        started = perf_counter()
        yield
        settle(self._executor.model.device)
        self.probe_ms += (perf_counter() - started) * 1e3
        self.token_layers += token_layers
