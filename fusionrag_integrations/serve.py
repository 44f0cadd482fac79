"""Prompt -> answer: the order of the online steps.

prompt --match, encode, assemble--> AssembledPrompt --load, capture, place--> buffer
       --probe, select--> TokenSelection --recompute--> logits --decode--> text
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from threading import Lock
from typing import get_args

import torch

from fusionrag_integrations.capture import Captures
from fusionrag_integrations.catalog import Catalog
from fusionrag_integrations.chunk_kv import place_consecutively, prefill_chunks, prefill_prefix
from fusionrag_integrations.decode import TextStream, decode_tokens
from fusionrag_integrations.errors import KVForeignError, KVRecordError, PromptTooLongError
from fusionrag_integrations.match import ChunkMatcher, resolve
from fusionrag_integrations.model import CausalModel, StepFunction
from fusionrag_integrations.prompt import (
    EncodedPrompt,
    WordedPrompt,
    assemble,
    encode_chunk,
    encode_worded,
    equal_at_start,
    word,
)
from fusionrag_integrations.recompute import PlacedPrompt, lay
from fusionrag_integrations.selectors import make_selector
from fusionrag_integrations.store import Lease, TieredKV
from fusionrag_integrations.timing import Stopwatch
from fusionrag_integrations.types import (
    Answer,
    AnswerSettings,
    AssembledPrompt,
    Calibration,
    ChunkKV,
    ChunkRecord,
    FinishReason,
    KVKind,
    LayeredKV,
    LoadedPrompt,
    Prompt,
    Selector,
    Span,
    TextMatch,
    Usage,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Computed:
    """A prompt that is computed: what the first token needs, and what it cost."""

    logits: torch.Tensor
    step: StepFunction
    usage: Usage
    fused_chunks: int = 0
    isolated_chunks: int = 0
    missed_chunks: int = 0
    captured_chunks: int = 0


class Server:
    """Answers prompts over the chunks of one catalog, from several threads at once.

    Requests share what they read, and nothing that they change.
    """

    def __init__(
        self,
        model: CausalModel,
        catalog: Catalog,
        kv: TieredKV,
        prefix_ids: tuple[int, ...],
        calibration: Calibration | None,
        break_even: int = 0,
        on_hot: Callable[[ChunkRecord], None] = lambda record: None,
    ) -> None:
        """break_even: a prompt of fewer tokens is computed in full, unless a request declines.

        on_hot: called, in the background, with captured chunks that are used often.
        """
        self._model = model
        self._catalog = catalog
        self._prefix_ids = prefix_ids
        self._calibration = calibration
        self._break_even = break_even
        self._kv = kv
        self._on_hot = on_hot
        self._captures = Captures(catalog, kv, partial(encode_chunk, model.tokenizer))
        self._background = ThreadPoolExecutor(1, thread_name_prefix="fusionrag-keep")
        self._known: tuple[int, ChunkMatcher] | None = None
        self._refreshing = Lock()

    def offer(self, texts: Iterable[str], scope: str) -> None:
        """Texts that prompts may hold from now on, and that were not ingested."""
        self._captures.offer(texts, scope)

    def load(self, prompt: Prompt, settings: AnswerSettings) -> LoadedPrompt:
        """A prompt with its KV, as a request would place it."""
        worded = word(self._model.tokenizer, prompt)
        matches = self._matches(worded, settings)
        encoded = encode_worded(self._model.tokenizer, worded, matches)
        with self._kv.lease() as lease:
            wanted = assemble(encoded, matches, settings.handles)
            watch = Stopwatch(self._model.device)
            return self._load(wanted, settings, lease, watch, complete=True)

    def run(self, prompt: Prompt, settings: AnswerSettings) -> Iterator[str | Answer]:
        """Yields pieces of text, and at last the answer."""
        with self._kv.lease() as lease:
            yield from self._run(prompt, settings, lease)

    def _run(
        self, prompt: Prompt, settings: AnswerSettings, lease: Lease
    ) -> Iterator[str | Answer]:
        watch = Stopwatch(self._model.device)
        selector = make_selector(settings.selector, settings.ratio, self._calibration)
        worded = word(self._model.tokenizer, prompt)
        watch.lap("encode")
        reuses = settings.kv in get_args(KVKind)
        matches = []
        if reuses:
            matches = self._matches(worded, settings)
            watch.lap("match")
        encoded = encode_worded(self._model.tokenizer, worded, matches)
        window = self._model.context_window
        room = window - len(encoded.token_ids)
        if room < 1:
            raise PromptTooLongError(
                f"The prompt has {len(encoded.token_ids)} tokens; the context of "
                f"{self._model.name} holds {window}, and the answer needs at least one of them. "
                "Retrieve fewer or shorter chunks."
            )
        settings = replace(settings, max_tokens=min(settings.max_tokens, room))
        watch.lap("encode")
        short = settings.break_even and reuses and len(encoded.token_ids) < self._break_even
        if settings.kv == "none" or short:
            warm = self._full_attention(encoded, watch)
        elif settings.kv == "prefix":
            warm = self._prefix_cache(encoded, settings, watch)
        else:
            warm = self._reuse(encoded, matches, settings, selector, lease, watch)
        text = TextStream(self._model.tokenizer, settings.stop)
        pieces: list[str] = []
        token_ids: list[int] = []
        finish: FinishReason = "length"
        for token in decode_tokens(
            warm.logits,
            warm.step,
            encoded.token_ids,
            settings,
            self._model.hf.generation_config,
        ):
            if not token_ids:
                watch.lap("first_token")
            token_ids.append(token.token_id)
            if piece := text.push(token.token_id):
                pieces.append(piece)
                yield piece
            finish = "stop" if text.stopped else token.finished or finish
            if text.stopped:
                break
        if rest := text.flush():
            pieces.append(rest)
            yield rest
        yield Answer(
            text="".join(pieces),
            token_ids=tuple(token_ids),
            finish_reason=finish,
            usage=replace(warm.usage, completion_tokens=len(token_ids)),
            ttft=watch.breakdown(),
            fused_chunks=warm.fused_chunks,
            isolated_chunks=warm.isolated_chunks,
            missed_chunks=warm.missed_chunks,
            captured_chunks=warm.captured_chunks,
            short=short,
        )

    def _full_attention(self, encoded: EncodedPrompt, watch: Stopwatch) -> _Computed:
        logits, step = self._model.prefill_dense(encoded.token_ids)
        watch.lap("prefill")
        count = len(encoded.token_ids)
        work = count * self._model.num_layers
        return _Computed(logits, step, Usage(count, 0, 0, count, 0, 0, work))

    def _prefix_cache(
        self, encoded: EncodedPrompt, settings: AnswerSettings, watch: Stopwatch
    ) -> _Computed:
        ids = encoded.token_ids
        shared = equal_at_start(self._prefix_ids, ids[:-1])
        prefix = self._prefix
        watch.lap("load")
        room = max(len(ids) + settings.max_tokens, len(self._prefix_ids))
        buffer = self._model.new_buffer(room)
        place_consecutively(self._model, buffer, [prefix])  # what isn't shared is overwritten
        watch.lap("place")
        logits = self._model.forward_rows(ids[shared:], range(shared, len(ids)), buffer)
        watch.lap("prefill")
        work = (len(ids) - shared) * self._model.num_layers
        return _Computed(
            logits,
            self._model.appender(buffer, len(ids)),
            Usage(len(ids), shared, 0, len(ids) - shared, 0, 0, work, prefix_tokens=shared),
        )

    @cached_property
    def _prefix(self) -> ChunkKV:
        return prefill_prefix(self._model, self._prefix_ids)

    def _reuse(
        self,
        encoded: EncodedPrompt,
        matches: Sequence[TextMatch],
        settings: AnswerSettings,
        selector: Selector,
        lease: Lease,
        watch: Stopwatch,
    ) -> _Computed:
        wanted = assemble(encoded, matches, settings.handles)
        watch.lap("match")
        try:
            loaded = self._load(wanted, settings, lease, watch)
            return self._recomputed(loaded, settings, selector, watch)
        except KVRecordError as error:
            # It showed while layers ran. Now nothing is used before it has come as a whole.
            logger.warning("Starting again without it: %s", error)
            loaded = self._load(wanted, settings, lease, watch, complete=True)
            return self._recomputed(loaded, settings, selector, watch)

    def _recomputed(
        self, loaded: LoadedPrompt, settings: AnswerSettings, selector: Selector, watch: Stopwatch
    ) -> _Computed:
        prompt = loaded.prompt
        laid = lay(self._model, prompt, loaded.kvs, len(prompt) + settings.max_tokens)
        watch.lap("place", wait=False)  # KV moves on while the first layers run
        placed = PlacedPrompt(self._model, prompt, laid)
        selection = selector.select(prompt, placed)
        watch.lap("select")
        watch.move("select", "probe", placed.probe_ms)
        warm = placed.recompute(selection)
        watch.lap("prefill")
        self._keep(loaded)
        found = len(prompt.chunk_positions)
        kinds = {
            _occurrence(span): kv.kind for span, kv in zip(prompt.spans, loaded.kvs, strict=True)
        }
        new = [span for span in prompt.spans if span.record.chunk.id in loaded.captured]
        selected = set(selection.positions)
        kept = sum(p not in selected for span in new for p in range(span.start, span.stop))
        return _Computed(
            warm.logits,
            self._model.appender(warm.kv, len(prompt)),
            Usage(
                prompt_tokens=len(prompt),
                reused_tokens=found - len(selection) - kept,
                recomputed_tokens=len(selection),
                fresh_tokens=len(prompt) - found,
                missed_tokens=sum(span.length for span in loaded.missed),
                completion_tokens=0,
                token_layers=placed.token_layers
                + self._model.num_layers
                * sum(len(kv.token_ids) for kv in loaded.captured.values()),
                captured_tokens=kept,
            ),
            fused_chunks=sum(kind == "fused" for kind in kinds.values()),
            isolated_chunks=sum(kind == "isolated" for kind in kinds.values()),
            missed_chunks=len({_occurrence(span) for span in loaded.missed}),
            captured_chunks=len({_occurrence(span) for span in new}),
        )

    def _keep(self, loaded: LoadedPrompt) -> None:
        """Store what was captured, and see to what is hot, when there is time."""
        records = {span.record.chunk.id: span.record for span in loaded.prompt.spans}
        for chunk_id, kv in loaded.captured.items():
            self._background.submit(self._captures.keep, records.pop(chunk_id), kv)
        for record in self._captures.hot(records.values()):
            self._background.submit(self._on_hot, record)

    def _matches(self, worded: WordedPrompt, settings: AnswerSettings) -> list[TextMatch]:
        """The known chunks in a prompt's text."""
        read_records = self._catalog.records
        handles, scopes = settings.handles, settings.scopes
        found = self._matcher().find(worded.text, read_records, handles, scopes)
        known = resolve(found, handles)
        new = self._captures.find(worded.text, known, scopes)
        return sorted([*known, *new], key=lambda match: match.start)

    def _matcher(self) -> ChunkMatcher:
        """The known texts; where documents changed, with those that came, without those gone."""
        catalog = self._catalog
        with self._refreshing:  # one reads, the others wait for it
            revision = catalog.texts_revision
            known, matcher = self._known or (-1, None)
            if matcher is None or known != revision:
                matcher = ChunkMatcher(catalog.text_ids(), catalog.scoped_texts, matcher)
                self._known = revision, matcher
            return matcher

    def _load(
        self,
        prompt: AssembledPrompt,
        settings: AnswerSettings,
        lease: Lease,
        watch: Stopwatch,
        complete: bool = False,
    ) -> LoadedPrompt:
        """The prompt with its KV. complete: all of it, else layers may be on their way."""
        variants: list[KVKind] = [
            "isolated" if settings.kv == "isolated" else span.variant for span in prompt.spans
        ]
        wanted = list(zip(prompt.spans, variants, strict=True))
        lease.begin(dict.fromkeys(_keys(span.record, variant)[0] for span, variant in wanted))
        loaded: dict[tuple[str, KVKind], LayeredKV | None] = {}
        kept: list[Span] = []
        kvs: list[LayeredKV] = []
        missed: list[Span] = []
        for span, variant in wanted:
            name = (span.record.chunk.id, variant)
            if name not in loaded:
                loaded[name] = self._load_chunk(span.record, variant, lease, complete)
        watch.lap("load")
        captured = self._capture(
            span.record
            for span, variant in wanted
            if span.record.captured and loaded[span.record.chunk.id, variant] is None
        )
        if captured:
            watch.lap("capture")
        for span, variant in wanted:
            kv = loaded[span.record.chunk.id, variant] or captured.get(span.record.chunk.id)
            if kv is None:
                missed.append(span)
            else:
                kept.append(replace(span, variant=kv.kind))
                kvs.append(kv)
        prompt = replace(prompt, spans=tuple(kept))
        return LoadedPrompt(prompt, tuple(kvs), tuple(missed), captured)

    def _capture(self, records: Iterable[ChunkRecord]) -> dict[str, ChunkKV]:
        """Isolated KV of new chunks, by their ids."""
        new = {record.isolated_key: record for record in records}
        if not new:
            return {}
        tokens = {key: record.encoded.token_ids for key, record in new.items()}
        kvs = prefill_chunks(self._model, self._prefix, tokens)
        return {new[kv.key].chunk.id: kv for kv in kvs}

    def _load_chunk(
        self, record: ChunkRecord, wanted: KVKind, lease: Lease, complete: bool
    ) -> LayeredKV | None:
        """The chunk's KV: fused if wanted and true, else isolated; None if neither is usable."""
        for key in _keys(record, wanted):
            try:
                kv = lease.get(key, complete)
                if kv.token_ids != record.encoded.token_ids:
                    self._kv.foreign(key)
                    raise KVForeignError(f"Record {key} holds another chunk's tokens.")
                return kv
            except KVRecordError as error:
                logger.warning("Chunk %s: %s", record.chunk.id, error)
        return None


def _keys(record: ChunkRecord, wanted: KVKind) -> list[str]:
    """Keys of the records that will do, best first."""
    fused = [record.fused_key] if wanted == "fused" and record.fused_key else []
    return [*fused, record.isolated_key]


def _occurrence(span: Span) -> tuple[str, int]:
    """Tells the places of a prompt where a chunk stands apart; a chunk may be in several spans."""
    return span.record.chunk.id, span.start - span.source_start
