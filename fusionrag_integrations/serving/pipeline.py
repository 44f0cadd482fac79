"""Prompt -> answer: the steps of a request, in their order.

prepare    render, match, tokenize, assemble
load       the KV of known chunks, in place in the prompt
select     which of their tokens to recompute
recompute  those and the fresh tokens: the prefill; under full attention, all
decode     a token at a time
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.keys import isolated_key
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import KVRecordError, PromptTooLongError, StoreClosedError
from fusionrag_integrations.execution.chunk_kv import prefill_prefix
from fusionrag_integrations.execution.decoding import TokenDecoder
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.placement import place
from fusionrag_integrations.execution.recompute import PlacedPrompt
from fusionrag_integrations.prompt import EncodedPrompt, assemble, encode_chunk, encode_rendered
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.selectors import make_selector
from fusionrag_integrations.serving.adhoc import AdHocChunks
from fusionrag_integrations.serving.answer import AnswerStream, Reuse
from fusionrag_integrations.serving.known_chunks import KnownChunks
from fusionrag_integrations.serving.loading import ChunkLoading, LoadedPrompt
from fusionrag_integrations.serving.rendering import render_prompt
from fusionrag_integrations.serving.request import Request, Stage
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.timing import Stopwatch
from fusionrag_integrations.serving.usage import Usage
from fusionrag_integrations.store.calibration import Calibration
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.corrections import Corrections
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.kv.types import ChunkKV
from fusionrag_integrations.support.threads import Closable, Threads

logger = logging.getLogger(__name__)


class Pipeline(Closable):
    """Answers prompts over the chunks of one store, from several threads at once.

    What requests share is safe to use from several threads; all else is in the `Request`.
    """

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
    ) -> None:
        """break_even: prompts of fewer tokens are computed in full, unless their settings say not.

        on_hot: called, in the background, with ad-hoc chunks that are used often.
        """
        self._executor = executor
        self._catalog = catalog
        self._kv = kv
        self._prefix_ids = prefix_ids
        self._calibration = calibration
        self._break_even = break_even
        self.adhoc = AdHocChunks(catalog, kv, self._record, on_hot)
        self._chunks = KnownChunks(catalog, self.adhoc, self._record)
        self.loading = ChunkLoading(
            executor, kv, corrections, lambda: self._prefix, len(prefix_ids)
        )
        self._closed = False

    def close(self) -> None:
        """Wait until ad-hoc chunks are stored. Requests in progress fail at their next step."""
        self._closed = True
        self.adhoc.close()

    def check_open(self) -> None:
        """Raises `StoreClosedError` once this or the catalog is closed."""
        self._catalog.check_open()
        if self._closed:
            raise StoreClosedError.of(self._catalog.store)

    def request(self, prompt: Prompt, settings: AnswerSettings) -> Request:
        """A request, before its first step."""
        watch = Stopwatch(self._executor.model.device)
        return Request(prompt, settings, self._kv.lease(), watch)

    def stream(
        self, prompt: Prompt, settings: AnswerSettings, threads: Threads | None = None
    ) -> AnswerStream:
        """An answer that is computed as it is read. threads: see `AnswerStream`."""
        request = self.request(prompt, settings)
        return AnswerStream(request, partial(self.step, request), threads)

    def step(self, request: Request) -> str:
        """Do a request's next step; returns text that no later token can change, often none.

        A request that fails releases its KV. Raises `StoreClosedError` after `close`.
        """
        try:
            self.check_open()
            return self._advance(request)
        except BaseException:
            request.close()
            raise

    def _advance(self, request: Request) -> str:
        try:
            match request.stage:
                case Stage.PREPARE:
                    self.prepare(request)
                case Stage.LOAD:
                    self.load(request)
                case Stage.SELECT:
                    self.select(request)
                case Stage.RECOMPUTE:
                    self.recompute(request)
                case Stage.DECODE:
                    return self.decode(request)
        except KVRecordError as error:
            if request.stage not in (Stage.LOAD, Stage.SELECT, Stage.RECOMPUTE):
                raise
            self._load_again(request, error)
        return ""

    def prepare(self, request: Request) -> None:
        """Render, match and tokenize the prompt, and decide whether KV is reused."""
        settings, watch = request.settings, request.watch
        watch.start()
        rendered = render_prompt(self._tokenizer, request.prompt, settings, self._chunks)
        watch.lap("encode")
        reuses, matches = settings.kv != "none", []
        if reuses:
            matches = self._chunks.find(rendered.text, settings)
            watch.lap("match")
        request.encoded = encode_rendered(self._tokenizer, rendered, matches)
        self._fit(request)
        watch.lap("encode")
        count = len(request.encoded.token_ids)
        request.short = reuses and settings.break_even and count < self._break_even
        request.dense = request.short or not reuses
        if not reuses:
            request.full_reason = "the settings ask for it (kv='none')."
        elif request.short:
            request.full_reason = (
                f"it has {count} tokens, and reuse pays from {self._break_even} on here."
            )
        else:
            request.assembled = assemble(request.encoded, matches, settings.handles)
            watch.lap("match")
        request.stage = Stage.RECOMPUTE if request.dense else Stage.LOAD

    def load(self, request: Request) -> None:
        """Load the KV of the chunks, and place it. That of new ad-hoc chunks is computed."""
        request.loaded = loaded = self.loading.load(
            request.assembled,
            request.settings,
            request.lease,
            request.watch,
            complete=request.wait_for_all,
        )
        capacity = len(loaded.prompt) + request.settings.max_tokens
        kv = place(self._executor, loaded.prompt, loaded.kvs, capacity)
        request.watch.lap("place", wait=False)  # copies go on while the first layers run
        request.placed = PlacedPrompt(
            self._executor, loaded.prompt, kv, corrected=request.settings.corrected
        )
        request.stage = Stage.SELECT

    def select(self, request: Request) -> None:
        """Choose the tokens to recompute."""
        settings, placed = request.settings, request.placed
        selector = make_selector(settings.selector, settings.ratio, self._calibration)
        request.selection = selector.select(request.loaded.prompt, placed)
        request.watch.lap("select")
        request.watch.move("select", "probe", placed.probe_ms)
        request.stage = Stage.RECOMPUTE

    def recompute(self, request: Request) -> None:
        """Prefill: compute the selected and the fresh tokens, or under full attention all.

        Afterwards the prompt's KV is complete, and its last logits are known.
        """
        if request.dense:
            self._prefill_dense(request)
            return
        prompt = request.loaded.prompt
        prefill = request.placed.recompute(request.selection)
        request.watch.lap("prefill")
        self.adhoc.keep(request.loaded)
        request.usage = self._usage(request)
        request.reuse = Reuse.of(request.loaded, request.selection)
        request.full_reason = request.reuse.why_all()
        step = self._executor.appender(prefill.kv, len(prompt))
        decoder = TokenDecoder(prefill.logits[0], step, request.generation, request.settings.seed)
        request.begin_output(decoder, self._tokenizer)
        request.release_loaded()

    def decode(self, request: Request) -> str:
        """The next token; returns text that is certain now."""
        first = not request.output.token_ids
        piece = request.output.add_token()
        if first:
            request.watch.lap("first_token")
        if request.output.finish_reason:
            request.finish(self._catalog.kv.neighbour_chunks)
        return piece

    def encode(self, prompt: Prompt, settings: AnswerSettings) -> EncodedPrompt:
        """A prompt's tokens, as in a request."""
        rendered = render_prompt(self._tokenizer, prompt, settings, self._chunks)
        return encode_rendered(self._tokenizer, rendered)

    def load_prompt(self, prompt: Prompt, settings: AnswerSettings) -> LoadedPrompt:
        """A prompt with its KV, as in a request."""
        self.check_open()
        rendered = render_prompt(self._tokenizer, prompt, settings, self._chunks)
        matches = self._chunks.find(rendered.text, settings)
        encoded = encode_rendered(self._tokenizer, rendered, matches)
        wanted = assemble(encoded, matches, settings.handles)
        watch = Stopwatch(self._executor.model.device)
        with self._kv.lease() as lease:
            return self.loading.load(wanted, settings, lease, watch, complete=True)

    def _fit(self, request: Request) -> None:
        """Check that the prompt fits the context, and limit the answer to what is left of it."""
        model, token_ids = self._executor.model, request.encoded.token_ids
        room = model.context_window - len(token_ids)
        if room < 1:
            raise PromptTooLongError(
                f"The prompt has {len(token_ids)} tokens; the context of {model.name} holds "
                f"{model.context_window}, and the answer needs at least one of them. Retrieve "
                "fewer or shorter chunks."
            )
        settings = request.settings
        request.settings = replace(settings, max_tokens=min(settings.max_tokens, room))
        request.generation = model.generation(token_ids, request.settings.sampling)

    def _load_again(self, request: Request, error: KVRecordError) -> None:
        """A record turned out damaged while layers ran: load without it, this time completely."""
        if request.wait_for_all:
            raise error
        logger.warning("Starting again without a KV record: %s", error)
        request.wait_for_all = True
        request.stage = Stage.LOAD

    def _prefill_dense(self, request: Request) -> None:
        token_ids = request.encoded.token_ids
        logits, step = self._executor.prefill_dense(token_ids)
        request.watch.lap("prefill")
        layers = self._executor.model.num_layers
        request.usage = Usage.of_full_attention(len(token_ids), layers)
        decoder = TokenDecoder(logits, step, request.generation, request.settings.seed)
        request.begin_output(decoder, self._tokenizer)

    def _usage(self, request: Request) -> Usage:
        loaded, selection = request.loaded, request.selection
        prompt, adhoc = loaded.prompt, loaded.adhoc
        found, selected = len(prompt.chunk_positions), set(selection.positions)
        captured = sum(
            position not in selected
            for span in prompt.spans
            if span.record.chunk.id in adhoc
            for position in range(span.start, span.stop)
        )
        prefilled = sum(len(kv.token_ids) for kv in adhoc.values())
        return Usage(
            prompt_tokens=len(prompt),
            reused_tokens=found - len(selection) - captured,
            recomputed_tokens=len(selection),
            fresh_tokens=len(prompt) - found,
            missed_tokens=sum(span.length for span in loaded.missed),
            completion_tokens=0,
            token_layers=request.placed.token_layers + self._executor.model.num_layers * prefilled,
            captured_tokens=captured,
        )

    def _record(self, chunk: Chunk) -> ChunkRecord:
        encoded = encode_chunk(self._tokenizer, chunk)
        signature = self._catalog.info.record_signature
        return ChunkRecord(encoded, isolated_key(encoded.token_ids, signature, chunk.scope))

    @property
    def _tokenizer(self) -> Any:
        return self._executor.model.tokenizer

    @cached_property
    def _prefix(self) -> ChunkKV:
        return prefill_prefix(self._executor, self._prefix_ids)
