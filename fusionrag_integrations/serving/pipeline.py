"""Prompt -> answer: the steps of a request, in their order.

prepare    render, match, tokenize, assemble
read       the stored KV of known chunks
capture    compute the KV of new ones
place      the KV, in the prompt
select     which tokens of chunks to recompute
recompute  those and the fresh tokens: the prefill; under full attention, all
decode     a token at a time

Capture, select and recompute need passes of the model. What they want computed is the request's
`work`; a scheduler runs it, with that of others, and lets the step go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.execution.buffer import SequenceKV
from fusionrag_integrations.execution.chunk_kv import prefill_prefix
from fusionrag_integrations.execution.dense import DensePrefill
from fusionrag_integrations.execution.executor import Executor, SequenceInput
from fusionrag_integrations.execution.placement import place
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.execution.work import WorkNeeded
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.selectors import make_selector
from fusionrag_integrations.serving.answer import Reuse
from fusionrag_integrations.serving.loading import ChunkLoading, LoadedPrompt
from fusionrag_integrations.serving.request import Request, Stage
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.steps import RequestSteps
from fusionrag_integrations.serving.usage import Usage
from fusionrag_integrations.store.calibration import Calibration
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.corrections import Corrections
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.kv.types import ChunkKV


class Pipeline(RequestSteps):
    """The steps of requests over the chunks of one store."""

    executor: Executor

    def __init__(
        self,
        executor: Executor,
        catalog: Catalog,
        kv: TieredKV,
        prefix_ids: tuple[int, ...],
        corrections: Corrections,
        calibration: Calibration | None,
        break_even: int = 0,
        on_hot: Callable[[ChunkRecord], None] = lambda record: None,
        start_bytes: int = 0,
    ) -> None:
        """break_even: prompts of fewer tokens are computed in full, unless their settings say not.

        on_hot: called, in the background, with ad-hoc chunks that are used often. start_bytes: of
        KV of prompts' starts, which is kept for others that begin the same.
        """
        super().__init__(
            executor, catalog, kv, break_even=break_even, on_hot=on_hot, start_bytes=start_bytes
        )
        self._prefix_ids = prefix_ids
        self._calibration = calibration
        self.loading = ChunkLoading(
            executor, kv, corrections, lambda: self._prefix, len(prefix_ids)
        )

    def reads_at_once(self, request: Request) -> bool:
        """Whether `read` waits for no disk, nor for anything else."""
        return not request.wait_for_all and self.loading.at_hand(
            request.assembled, request.settings
        )

    def read(self, request: Request) -> None:
        """Read the KV of the chunks, of which the first layers are enough."""
        request.read = self.loading.read(
            request.assembled, request.settings, request.lease, complete=request.wait_for_all
        )
        request.watch.lap("load", wait=False)
        request.stage = Stage.CAPTURE

    def capture(self, request: Request) -> None:
        """Compute the KV of new ad-hoc chunks."""
        read = request.read
        if read.new and request.work is None:
            request.work = self.loading.capture(read)
            return
        computed = request.work.result if request.work else ()
        if read.new:
            request.watch.lap("capture")
        request.loaded, request.work = read.with_new(computed), None
        request.stage = Stage.PLACE

    def place(self, request: Request) -> None:
        """Place the KV of the chunks in the prompt."""
        loaded = request.loaded
        kv = place(self.executor, loaded.prompt, loaded.kvs, request.capacity, request.known)
        request.watch.lap("place", wait=False)  # copies go on while the first layers run
        corrected = request.settings.corrected
        request.placed = PlacedPrompt(
            self.executor, loaded.prompt, kv, corrected=corrected, deferred=True
        )
        request.stage = Stage.SELECT

    def select(self, request: Request) -> None:
        """Choose the tokens to recompute. A selector is called again once its work is done."""
        settings, placed = request.settings, request.placed
        selector = make_selector(settings.selector, settings.ratio, self._calibration)
        try:
            request.selection = selector.select(request.loaded.prompt, placed)
        except WorkNeeded as needed:
            request.work = needed.work
            return
        request.work = None
        request.watch.lap("select")
        request.watch.move("select", "probe", placed.probe_ms)
        request.stage = Stage.RECOMPUTE

    def recompute(self, request: Request) -> None:
        """Prefill: compute the selected and the fresh tokens, or under full attention all.

        Afterwards the prompt's KV is complete, and its last logits give the first token.
        """
        if request.work is None:
            request.work = (
                DensePrefill(self.executor, request.encoded.token_ids, request.capacity)
                if request.dense
                else request.placed.recompute_work(request.selection)
            )
            return
        prefill, request.work = request.work.result, None
        request.watch.lap("prefill")
        layers = self.executor.model.num_layers
        if request.dense:
            request.usage = Usage.of_full_attention(len(request.encoded.token_ids), layers)
        else:
            self.adhoc.keep(request.loaded)
            request.reuse = Reuse.of(request.loaded, request.selection, request.known)
            request.usage = request.reuse.usage(request.loaded, request.placed.token_layers, layers)
            request.full_reason = request.full_reason or request.reuse.why_all()
        self._keep_start(request, prefill.kv)
        request.kv = prefill.kv
        append = partial(_appended, prefill.kv)
        request.begin_output(prefill.logits.device, append, self._tokenizer)
        request.release_loaded()
        self.decode(request, prefill.logits[0])

    def settle(self, request: Request) -> None:
        """Wait until all KV that a pass would read is there. Raises where some can't be read."""
        if request.stage in (Stage.SELECT, Stage.RECOMPUTE) and not request.dense:
            request.placed.wait()

    def load_prompt(self, prompt: Prompt, settings: AnswerSettings) -> LoadedPrompt:
        """A prompt with its KV, as in a request."""
        self.check_open()
        settings = self._settled(settings)
        assembled = self._preparation.assemble(prompt, settings)
        with self._kv.lease() as lease:
            return self.loading.load(assembled, settings, lease, complete=True)

    @property
    def _steps_between(self) -> Mapping[Stage, Callable[[Request], None]]:
        return {
            Stage.CAPTURE: self.capture,
            Stage.PLACE: self.place,
            Stage.SELECT: self.select,
            Stage.RECOMPUTE: self.recompute,
        }

    def _settled(self, settings: AnswerSettings) -> AnswerSettings:
        return replace(settings, kv="fused") if settings.kv is None else settings

    def _keep_start(self, request: Request, kv: SequenceKV) -> None:
        """Keep what stands before the first chunk: nothing that stored KV changes."""
        ids, model = request.encoded.token_ids, self.executor.model
        # The model's own cache forgets what its windows have left behind.
        whole = not request.dense or len(model.global_layers) == model.num_layers
        if request.known.exact and request.settings.kv != "none" and whole:
            spans = () if request.dense else request.loaded.prompt.spans
            request.exact = spans[0].start if spans else len(ids)
            start = ids[: request.exact]
            self.starts.keep_exact(start, request.settings, kv.copy_out)

    def _keep_answered(self, request: Request) -> None:
        """Keep a prompt with its answer, for what goes on from there."""
        ids, settings, kv = request.computed_ids, request.settings, request.kv
        asked = len(request.encoded.token_ids)
        if request.settings.kv == "none":
            return
        if request.exact == asked:
            self.starts.keep_exact(ids, settings, kv.copy_out)
        elif not isinstance(request.prompt, str):  # a string is no conversation
            self.starts.keep_conversation(ids, asked, settings, request.revision, kv)

    @cached_property
    def _prefix(self) -> ChunkKV:
        return prefill_prefix(self.executor, self._prefix_ids)


def _appended(kv: SequenceKV, token_id: int, position: int) -> SequenceInput:
    return SequenceInput((token_id,), (position,), kv, last=1)
