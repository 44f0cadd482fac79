"""Prompt -> answer: the order of the online steps.

prompt --match, encode, assemble--> AssembledPrompt --load, capture, place--> buffer
       --probe, select--> TokenSelection --recompute--> logits --decode--> text
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from threading import Lock
from typing import get_args

import torch

from fusionrag_integrations.answer import Answer, PromptTrace, Reuse
from fusionrag_integrations.capture import Captures
from fusionrag_integrations.catalog import Catalog
from fusionrag_integrations.chunk_kv import place_at, prefill_prefix
from fusionrag_integrations.corrections import Corrections
from fusionrag_integrations.decode import CALL_TOKENS, TextStream, decode_tokens
from fusionrag_integrations.errors import KVRecordError, PromptTooLongError, StoreClosedError
from fusionrag_integrations.forks import Forkable
from fusionrag_integrations.keys import isolated_key
from fusionrag_integrations.loading import ChunkLoading
from fusionrag_integrations.match import ChunkMatcher, resolve
from fusionrag_integrations.model import CausalModel, StepFunction
from fusionrag_integrations.prompt import (
    EncodedPrompt,
    Places,
    WordedPrompt,
    assemble,
    encode_chunk,
    encode_worded,
    equal_at_start,
    is_formatted,
    spells_control_tokens,
    word,
)
from fusionrag_integrations.recompute import PlacedPrompt, lay
from fusionrag_integrations.selectors import make_selector
from fusionrag_integrations.store import Lease, TieredKV
from fusionrag_integrations.threads import Closable, Threads
from fusionrag_integrations.timing import Stopwatch
from fusionrag_integrations.types import (
    AnswerSettings,
    Calibration,
    Chunk,
    ChunkKV,
    ChunkRecord,
    FinishReason,
    KVKind,
    LoadedPrompt,
    Prompt,
    Selector,
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
    full_reason: str = ""
    reuse: Reuse | None = None


class Server(Forkable, Closable):
    """Answers prompts over the chunks of one catalog, from several threads at once.

    Requests share what they read, and nothing that they change.
    """

    def __init__(
        self,
        model: CausalModel,
        catalog: Catalog,
        kv: TieredKV,
        prefix_ids: tuple[int, ...],
        corrections: Corrections,
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
        self._loading = ChunkLoading(model, kv, corrections, lambda: self._prefix, len(prefix_ids))
        self._captures = Captures(catalog, kv, partial(encode_chunk, model.tokenizer))
        self._background = Threads("fusionrag-keep", catalog.store, 1)
        self._known: tuple[int, ChunkMatcher] | None = None
        self._refreshing = Lock()
        self._closed = False
        super().__init__()

    def renew(self) -> None:
        """In a forked child, where nobody is left to unlock what was locked."""
        self._refreshing = Lock()
        self._captures.renew()

    def close(self) -> None:
        """Wait until what was captured is kept. Requests under way end at their next token."""
        self._closed = True
        self._background.close()

    def check_open(self) -> None:
        """Raises `StoreClosedError` once this or the catalog is closed."""
        self._catalog.check_open()
        if self._closed:
            raise StoreClosedError.of(self._catalog.store)

    def offer(self, texts: Iterable[str], scope: str) -> None:
        """Texts that prompts may hold from now on, and that were not ingested."""
        self._captures.offer(texts, scope)

    def encode(self, prompt: Prompt, settings: AnswerSettings) -> EncodedPrompt:
        """A prompt's tokens, as a request would read it."""
        return encode_worded(self._model.tokenizer, self._worded(prompt, settings))

    def load(self, prompt: Prompt, settings: AnswerSettings) -> LoadedPrompt:
        """A prompt with its KV, as a request would place it."""
        self.check_open()
        worded = self._worded(prompt, settings)
        matches = self._matches(worded, settings)
        encoded = encode_worded(self._model.tokenizer, worded, matches)
        with self._kv.lease() as lease:
            wanted = assemble(encoded, matches, settings.handles)
            watch = Stopwatch(self._model.device)
            return self._loading.load(wanted, settings, lease, watch, complete=True)

    def run(self, prompt: Prompt, settings: AnswerSettings) -> Generator[str | Answer]:
        """Yields pieces of text, and at last the answer. Closed, it computes nothing more.

        There is a piece before the prompt is computed, and one for each token; some are empty.
        Raises `StoreClosedError` at the first step after `close`.
        """
        self.check_open()
        with self._kv.lease() as lease:
            for event in self._run(prompt, settings, lease):
                yield event
                self.check_open()

    def _run(
        self, prompt: Prompt, settings: AnswerSettings, lease: Lease
    ) -> Generator[str | Answer]:
        watch = Stopwatch(self._model.device)
        selector = make_selector(settings.selector, settings.ratio, self._calibration)
        worded = self._worded(prompt, settings)
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
        generation = self._model.generation(encoded.token_ids, settings)
        watch.lap("encode")
        yield ""
        short = settings.break_even and reuses and len(encoded.token_ids) < self._break_even
        if settings.kv == "none":
            warm = self._full_attention(encoded, "the settings ask for it (kv='none').", watch)
        elif short:
            reason = (
                f"it has {len(encoded.token_ids)} tokens, and reuse pays from "
                f"{self._break_even} on here."
            )
            warm = self._full_attention(encoded, reason, watch)
        elif settings.kv == "prefix":
            warm = self._prefix_cache(encoded, settings, watch)
        else:
            warm = self._reuse(encoded, matches, settings, selector, lease, watch)
        text = TextStream(
            self._model.tokenizer, settings.stop, CALL_TOKENS if settings.tools else ()
        )
        pieces: list[str] = []
        token_ids: list[int] = []
        finish: FinishReason = "length"
        for token in decode_tokens(warm.logits, warm.step, generation, settings.seed):
            if not token_ids:
                watch.lap("first_token")
            token_ids.append(token.token_id)
            pieces.append(text.push(token.token_id))
            yield pieces[-1]
            finish = token.finished or finish
            if text.stopped:
                break
        if rest := text.flush():
            pieces.append(rest)
            yield rest
        if text.stopped:  # by a token, or by what was held back
            finish = "stop"
        yield Answer(
            text="".join(pieces),
            token_ids=tuple(token_ids),
            finish_reason=finish,
            usage=replace(warm.usage, completion_tokens=len(token_ids)),
            ttft=watch.breakdown(),
            short=short,
            full_reason=warm.full_reason,
            **(warm.reuse.counts() if warm.reuse else {}),
            fallbacks=warm.reuse.fallbacks() if warm.reuse else (),
            trace=PromptTrace(encoded.text, encoded.offsets, warm.reuse, self._neighbours),
        )

    def _neighbours(self, records: Sequence[ChunkRecord]) -> dict[str, list[Chunk]]:
        """The chunks that fused KV was made behind, of records that are still as they were."""
        now = self._catalog.readable(record.chunk.id for record in records)
        ids = {
            record.chunk.id: self._catalog.neighbours(record.chunk.id)
            for record in records
            if now.get(record.chunk.id, record).fused_key == record.fused_key
        }
        known = self._catalog.readable({i for neighbours in ids.values() for i in neighbours})
        return {
            chunk_id: [known[i].chunk for i in neighbours if i in known]
            for chunk_id, neighbours in ids.items()
        }

    def _full_attention(self, encoded: EncodedPrompt, reason: str, watch: Stopwatch) -> _Computed:
        logits, step = self._model.prefill_dense(encoded.token_ids)
        watch.lap("prefill")
        count = len(encoded.token_ids)
        work = count * self._model.num_layers
        return _Computed(logits, step, Usage(count, 0, 0, count, 0, 0, work), reason)

    def _prefix_cache(
        self, encoded: EncodedPrompt, settings: AnswerSettings, watch: Stopwatch
    ) -> _Computed:
        ids = encoded.token_ids
        shared = equal_at_start(self._prefix_ids, ids[:-1])
        prefix = self._prefix
        watch.lap("load")
        room = max(len(ids) + settings.max_tokens, len(self._prefix_ids))
        buffer = self._model.new_buffer(room)
        place_at(self._model, buffer, prefix, 0)  # what isn't shared is overwritten
        watch.lap("place")
        (logits,) = self._model.forward_rows(ids[shared:], range(shared, len(ids)), buffer)
        watch.lap("prefill")
        work = (len(ids) - shared) * self._model.num_layers
        return _Computed(
            logits,
            self._model.appender(buffer, len(ids)),
            Usage(len(ids), shared, 0, len(ids) - shared, 0, 0, work, prefix_tokens=shared),
            "" if shared else "it doesn't begin with the store's ingest prefix.",
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
            loaded = self._loading.load(wanted, settings, lease, watch)
            return self._recomputed(loaded, settings, selector, watch)
        except KVRecordError as error:
            # It showed while layers ran. Now nothing is used before it has come as a whole.
            logger.warning("Starting again without a KV record: %s", error)
            loaded = self._loading.load(wanted, settings, lease, watch, complete=True)
            return self._recomputed(loaded, settings, selector, watch)

    def _recomputed(
        self, loaded: LoadedPrompt, settings: AnswerSettings, selector: Selector, watch: Stopwatch
    ) -> _Computed:
        prompt = loaded.prompt
        laid = lay(self._model, prompt, loaded.kvs, len(prompt) + settings.max_tokens)
        watch.lap("place", wait=False)  # KV moves on while the first layers run
        placed = PlacedPrompt(self._model, prompt, laid, corrected=settings.corrected)
        selection = selector.select(prompt, placed)
        watch.lap("select")
        watch.move("select", "probe", placed.probe_ms)
        warm = placed.recompute(selection)
        watch.lap("prefill")
        self._keep(loaded)
        found = len(prompt.chunk_positions)
        new = [span for span in prompt.spans if span.record.chunk.id in loaded.captured]
        selected = set(selection.positions)
        kept = sum(p not in selected for span in new for p in range(span.start, span.stop))
        usage = Usage(
            prompt_tokens=len(prompt),
            reused_tokens=found - len(selection) - kept,
            recomputed_tokens=len(selection),
            fresh_tokens=len(prompt) - found,
            missed_tokens=sum(span.length for span in loaded.missed),
            completion_tokens=0,
            token_layers=placed.token_layers
            + self._model.num_layers * sum(len(kv.token_ids) for kv in loaded.captured.values()),
            captured_tokens=kept,
        )
        step = self._model.appender(warm.kv, len(prompt))
        reuse = Reuse.of(loaded, selection)
        return _Computed(warm.logits[0], step, usage, reuse.why_all(), reuse)

    def _keep(self, loaded: LoadedPrompt) -> None:
        """Store what was captured, and see to what is hot, when there is time."""
        records = {span.record.chunk.id: span.record for span in loaded.prompt.spans}
        for chunk_id, kv in loaded.captured.items():
            self._background.submit(self._captures.keep, records.pop(chunk_id), kv)
        for record in self._captures.hot(records.values()):
            self._background.submit(self._on_hot, record)

    def _worded(self, prompt: Prompt, settings: AnswerSettings) -> WordedPrompt:
        """A prompt's text; of one that goes through no template, chunks in it are quoted."""
        tokenizer, raw = self._model.tokenizer, settings.raw
        chunks: Places | None = None
        if raw is None and isinstance(prompt, str) and is_formatted(tokenizer, prompt):
            # It is so only where its author says so, not a chunk.
            chunks = self._chunk_places(prompt, settings)
            raw = is_formatted(tokenizer, _without(prompt, chunks))
        worded = word(tokenizer, prompt, settings.tools, raw=bool(raw))
        if worded.plain and spells_control_tokens(tokenizer, worded.text):
            if chunks is None:
                chunks = self._chunk_places(worded.text, settings)
            worded = replace(worded, quoted=chunks)
        return worded

    def _chunk_places(self, text: str, settings: AnswerSettings) -> Places:
        """Where chunks stand in a text, of those that the request may use."""
        known = self._known_in(text, settings)
        places = [range(match.start, match.stop) for match in known]
        places += self._captures.places(text, known, settings.scopes)
        return tuple(sorted((place.start, place.stop) for place in places))

    def _matches(self, worded: WordedPrompt, settings: AnswerSettings) -> list[TextMatch]:
        """The known chunks in a prompt's text."""
        known = self._known_in(worded.text, settings)
        new = self._captures.find(worded.text, known, settings.scopes)
        return sorted([*known, *new], key=lambda match: match.start)

    def _known_in(self, text: str, settings: AnswerSettings) -> list[TextMatch]:
        handles, scopes = settings.handles, settings.scopes
        return resolve(self._matcher().find(text, self._records, handles, scopes), handles)

    def _records(self, chunk_ids: Sequence[str]) -> dict[str, ChunkRecord]:
        """What is known of chunks. Tokens that are damaged are made anew: they are the text's."""
        found = self._catalog.readable(chunk_ids)
        return {
            chunk_id: record if record.encoded.token_ids else self._encoded(record)
            for chunk_id, record in found.items()
        }

    def _encoded(self, record: ChunkRecord) -> ChunkRecord:
        encoded = encode_chunk(self._model.tokenizer, record.chunk)
        signature = self._catalog.info.record_signature
        key = isolated_key(encoded.token_ids, signature, record.chunk.scope)
        return replace(record, encoded=encoded, isolated_key=key)

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


def _without(text: str, places: Places) -> str:
    """A text without these places, which are in order."""
    starts = [0, *(stop for _, stop in places)]
    stops = [*(start for start, _ in places), len(text)]
    return "".join(text[start:stop] for start, stop in zip(starts, stops, strict=True))
