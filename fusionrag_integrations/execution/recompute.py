"""AssembledPrompt + TokenSelection -> PrefillOutput: KV and the answer's first logits.

The online half of the method (arXiv 2601.12904, online stage), over KV that `placement` gives.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import torch

from fusionrag_integrations.execution.buffer import KVBuffer, SequenceKV
from fusionrag_integrations.execution.carryover import CarriedChunk, Carryover
from fusionrag_integrations.execution.devices import settle
from fusionrag_integrations.execution.executor import Executor, SequenceInput
from fusionrag_integrations.execution.hf.rows_pass import ViewCapture
from fusionrag_integrations.execution.observed import ObservedKV
from fusionrag_integrations.execution.placement import PromptKV, SharedChunks, separators
from fusionrag_integrations.execution.staleness import Staleness, deviations
from fusionrag_integrations.execution.work import RowsWork, Work, WorkNeeded, complete
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.probe import LayerView
from fusionrag_integrations.selectors.selection import TokenSelection

EARLY_LAYERS = 2  # CacheBlend's: it compares at layer 1

Probed = TypeVar("Probed")


@dataclass(frozen=True, slots=True, eq=False)
class PrefillOutput:
    """A prompt that is computed: its last logits, and all KV.

    logits: [1 + A, V], behind the prompt and behind each of A tokens that were read after it.
    """

    logits: torch.Tensor
    kv: SequenceKV


class PlacedPrompt:
    """A prompt over its placed KV: first probed by a selector, then recomputed. Used once.

    It is the `Probe` of selectors. What they ask for is computed when they ask, or, if `deferred`,
    `WorkNeeded` is raised until a pass has computed it. `probe_ms` and `token_layers` add up what
    was done so far.
    """

    def __init__(
        self,
        executor: Executor,
        prompt: AssembledPrompt,
        kv: PromptKV,
        *,
        corrected: bool = False,
        deferred: bool = False,
    ) -> None:
        """corrected: whether what recomputed tokens are off by is carried over to the others."""
        self._executor = executor
        self._prompt = prompt
        self._kv = kv
        self._corrected = corrected
        self._deferred = deferred
        self._early: torch.Tensor | None = None  # [N, hidden] behind the early layers
        self._early_layers = min(EARLY_LAYERS, executor.model.num_layers)
        self._computed = range(0)  # of what stands before the first chunk: over it nothing is stale
        self._probes: dict[tuple[object, ...], tuple[float, Work[Any]]] = {}  # by what was asked
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
        return self._asked(("suffix", *layers), lambda: self._suffix(layers))

    def watched_suffix(
        self, layers: Sequence[int], watched: Sequence[int]
    ) -> tuple[list[LayerView], torch.Tensor]:
        """The same with chunk tokens run along, and what their placed KV is off by.

        watched: their positions. Off by: as `Staleness` measures it, float32 [max(layers) + 1,
        watched]. What was placed stands again afterwards. Separators are run here: tokens right
        behind them would be off by their absence.
        """
        name = ("watched", tuple(layers), tuple(watched))
        return self._asked(name, lambda: self._watched_suffix(layers, watched))

    def early_deviation(self) -> torch.Tensor:
        """Squared distance of true from placed K and V at layer 1, float32 [C].

        From then on the true KV of layers 0 and 1 stands in its place for every token.
        """
        return self._asked(("early",), self._early_deviation)

    def wait(self) -> None:
        """Wait until all KV is placed. Raises `KVRecordError` where it can't be read."""
        self._kv.wait()

    def close(self) -> None:
        """Forget what was asked, which refers back to this: memory is free without a collection."""
        self._probes.clear()

    @torch.inference_mode()
    def copy_prefix(self, other: PlacedPrompt) -> None:
        """What `other`, the same prompt, computed before the first chunk isn't computed again."""
        target, source, length = self._kv.as_buffer(), other._kv.as_buffer(), len(other._computed)
        target.keys[:, :, :length] = source.keys[:, :, :length]
        target.values[:, :, :length] = source.values[:, :, :length]
        self._kv, self._computed = target, other._computed

    def recompute(self, selection: TokenSelection, answer: Sequence[int] = ()) -> PrefillOutput:
        """`recompute_work`, done at once."""
        return complete(self._executor, self.recompute_work(selection, answer))

    def recompute_work(
        self, selection: TokenSelection, answer: Sequence[int] = ()
    ) -> Work[PrefillOutput]:
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
        carried = CarriedChunk.all_of(self._prompt, selection) if self._corrected else []
        if carried:
            self._kv = self._kv.as_buffer()  # shared chunks are never written to
        kv = self._kv.with_private_tokens([*rows, *range(end, self._kv.capacity)])
        first, hidden = 0, None
        if self._early is not None:
            first, hidden = self._early_layers, self._early[rows]
            if answer:
                read = range(end, end + len(answer))
                asked = SequenceInput(answer, read, kv, depth=first)
                hidden = torch.cat([hidden, *self._executor.run([asked])])
        self.token_layers += len(rows) * (self.num_layers - first)
        last = 1 + len(answer)
        ids = [*(self._prompt.token_ids[p] for p in rows), *answer]
        rows += range(end, end + len(answer))

        def piece(part: slice) -> SequenceInput:
            return SequenceInput(
                ids[part],
                rows[part],
                self._carrying(kv, rows[part], carried),
                hidden=None if hidden is None else hidden[part],
                first=first,
                last=last if part.stop == len(rows) else 0,
            )

        together = [
            range(bisect_left(rows, chunk.selected.start), bisect_left(rows, chunk.selected.stop))
            for chunk in carried
        ]
        together.append(range(len(rows) - last, len(rows)))
        return RowsWork(len(rows), piece, lambda outputs: PrefillOutput(outputs[-1], kv), together)

    def _suffix(self, layers: Sequence[int]) -> Work[list[LayerView]]:
        rows = sorted(set(self._prompt.fresh_positions).difference(separators(self._prompt)))
        kv = self._kv.with_private_tokens(self._prompt.fresh_positions)
        return self._probe(layers, rows, lambda positions: kv, lambda views: views)

    def _watched_suffix(
        self, layers: Sequence[int], watched: Sequence[int]
    ) -> Work[tuple[list[LayerView], torch.Tensor]]:
        rows = sorted({*self._prompt.fresh_positions, *watched})
        if not self._corrected and isinstance(self._kv, SharedChunks):
            return self._watched_in_place(self._kv, layers, rows, watched)
        self._kv = buffer = self._kv.as_buffer()  # shared chunks are never written to
        model, observed = self._executor.model, set(watched)
        sources = model.layout.shape.sources
        seen: list[Staleness] = []

        def over(positions: Sequence[int]) -> SequenceKV:
            here = [position for position in positions if position in observed]
            if not here:
                return buffer
            seen.append(Staleness(here, model.device))
            return ObservedKV(buffer, here, seen[-1])

        def finish(views: list[LayerView]) -> tuple[list[LayerView], torch.Tensor]:
            for staleness in seen:
                staleness.put_back(buffer)
            if model.layout.expands:  # what views show was made of what the pass wrote
                for layer, view in zip(layers, views, strict=True):
                    placed = [kv[:, list(watched)] for kv in buffer.layer(sources[layer])]
                    view.keys[:, list(watched)], _ = model.read_kv(layer, *placed)
            off = torch.cat([staleness.by_layer() for staleness in seen], dim=1)
            return views, off[list(sources[: max(layers) + 1])]

        return self._probe(layers, rows, over, finish)

    def _watched_in_place(
        self,
        chunks: SharedChunks,
        layers: Sequence[int],
        rows: Sequence[int],
        watched: Sequence[int],
    ) -> Work[tuple[list[LayerView], torch.Tensor]]:
        """The same over shared chunks, beside which the rows' own KV stays as it was computed."""
        kv = chunks.with_private_tokens(rows)
        model = self._executor.model
        sources = model.layout.shape.sources

        def finish(views: list[LayerView]) -> tuple[list[LayerView], torch.Tensor]:
            placed = chunks.placed(watched)
            for layer, view in zip(layers, views, strict=True):  # copies: they show what was placed
                of_layer = [kv[sources[layer]] for kv in placed]
                view.keys[:, list(watched)], _ = model.read_kv(layer, *of_layer)
            off = deviations(placed, kv.private(watched))
            return views, off[list(sources[: max(layers) + 1])]

        return self._probe(layers, rows, lambda positions: kv, finish)

    def _probe(
        self,
        layers: Sequence[int],
        rows: Sequence[int],
        over: Callable[[Sequence[int]], SequenceKV],
        finish: Callable[[list[LayerView]], Probed],
    ) -> Work[Probed]:
        """Rows of fresh and other tokens up to the last of `layers`; views of those of the suffix.

        over: the KV for some of their positions.
        """
        spans = self._prompt.spans
        first = bisect_left(rows, spans[-1].stop if spans else 0)  # row of the suffix
        depth = max(layers) + 1
        whole = depth == self.num_layers
        captures: list[ViewCapture] = []

        def piece(part: slice) -> SequenceInput:
            capture = None
            if part.stop > first:
                capture = ViewCapture(max(0, first - part.start), frozenset(layers))
                captures.append(capture)
            ids = [self._prompt.token_ids[position] for position in rows[part]]
            kv = over(rows[part])
            return SequenceInput(ids, rows[part], kv, capture, depth=None if whole else depth)

        def finished(outputs: list[torch.Tensor]) -> Probed:
            if whole and isinstance(self._kv, KVBuffer):
                self._computed = range(spans[0].start if spans else 0)
            self.token_layers += len(rows) * depth
            views = [LayerView.joined([c.views[layer] for c in captures]) for layer in layers]
            return finish(views)

        return RowsWork(len(rows), piece, finished)

    def _early_deviation(self) -> Work[torch.Tensor]:
        self._kv = buffer = self._kv.as_buffer()
        depth, every = self._early_layers, range(len(self._prompt))
        positions = list(self._prompt.chunk_positions)
        kv = buffer.layer(self._executor.model.layout.shape.sources[depth - 1])
        placed = [t[:, positions].float() for t in kv]

        def piece(part: slice) -> SequenceInput:
            return SequenceInput(self._prompt.token_ids[part], every[part], buffer, depth=depth)

        def finish(outputs: list[torch.Tensor]) -> torch.Tensor:
            self._early = torch.cat(outputs)
            self.token_layers += len(every) * depth
            moved = [t[:, positions] - old for t, old in zip(kv, placed, strict=True)]
            return torch.stack([difference.square().sum((0, 2)) for difference in moved]).sum(0)

        return RowsWork(len(every), piece, finish)

    @torch.inference_mode()
    def _asked(self, name: tuple[object, ...], make: Callable[[], Work[Probed]]) -> Probed:
        """What a selector asks for. Timed from the first time that it asks."""
        if name not in self._probes:
            self._probes[name] = perf_counter(), make()
        started, work = self._probes[name]
        if self._deferred and work.left:
            raise WorkNeeded(work)
        result: Probed = complete(self._executor, work)
        settle(self._executor.model.device)
        self.probe_ms += (perf_counter() - started) * 1e3
        return result

    def _carrying(
        self, kv: SequenceKV, positions: Sequence[int], chunks: Sequence[CarriedChunk]
    ) -> SequenceKV:
        """The KV for a pass over these, which carries over what the selected among them show."""
        here = [c for c in chunks if positions[0] <= c.selected.start <= positions[-1]]
        if not here or not isinstance(kv, KVBuffer):
            return kv
        carryover = Carryover(self._executor.model, here)
        return ObservedKV(kv, carryover.positions, carryover)
