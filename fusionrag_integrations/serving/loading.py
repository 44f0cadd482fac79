"""AssembledPrompt -> LoadedPrompt: the best KV that is available of a prompt's chunks.

read      what is stored
capture   compute that of new ad-hoc chunks
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.errors import KVForeignError, KVMissingError, KVRecordError
from fusionrag_integrations.execution.chunk_kv import prefill_chunks_work
from fusionrag_integrations.execution.correction import CorrectedKV
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.work import Work
from fusionrag_integrations.execution.work import complete as finish
from fusionrag_integrations.prompt.assembled import AssembledPrompt, Span
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.store.corrections import Correction, Corrections
from fusionrag_integrations.store.kv.lease import Lease
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.kv.types import ChunkKV, LayeredKV


@dataclass(frozen=True, slots=True, eq=False)
class LoadedPrompt:
    """A prompt with only the spans whose KV could be loaded, and that KV, span by span.

    missed: the spans whose KV is missing, corrupt or foreign. Their tokens are fresh. adhoc: KV
    among `kvs` that was computed for this prompt, by its chunk's id. reasons: by a chunk's id, why
    its KV is not fused, or why there is none.
    """

    prompt: AssembledPrompt
    kvs: tuple[LayeredKV, ...]
    missed: tuple[Span, ...]
    adhoc: Mapping[str, ChunkKV] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class ReadPrompt:
    """A prompt with the stored KV of its chunks, before that of new ones is computed.

    wanted: its spans, and the kind of KV each is to have. kvs: by the chunk's id and that kind,
    None where there is none. new: chunks whose KV this request computes, by their isolated keys.
    """

    prompt: AssembledPrompt
    wanted: Sequence[tuple[Span, KVKind]]
    kvs: Mapping[tuple[str, KVKind], LayeredKV | None]
    new: Mapping[str, ChunkRecord]
    reasons: Mapping[str, str]

    def with_new(self, computed: Iterable[ChunkKV]) -> LoadedPrompt:
        """The prompt with all KV. computed: that of `new`."""
        adhoc = {self.new[kv.key].chunk.id: kv for kv in computed}
        spans: list[Span] = []
        kvs: list[LayeredKV] = []
        missed: list[Span] = []
        for span, variant in self.wanted:
            kv = self.kvs[span.record.chunk.id, variant] or adhoc.get(span.record.chunk.id)
            if kv is None:
                missed.append(span)
            else:
                spans.append(replace(span, variant=kv.kind))
                kvs.append(kv)
        prompt = replace(self.prompt, spans=tuple(spans))
        return LoadedPrompt(prompt, tuple(kvs), tuple(missed), adhoc, self.reasons)


logger = logging.getLogger(__name__)

_NEW = "It came with a question, and hasn't been used often enough to be fused."
_STALE = "It isn't fused: ingest was not finished, or what it was fused behind has changed."
_UNCERTAIN = "Nothing says which chunk it is: several have this text, or the prompt cuts it short."


class ChunkLoading:
    """Loads chunks' KV from the tiers, and computes that of new ad-hoc chunks."""

    def __init__(
        self,
        executor: Executor,
        kv: TieredKV,
        corrections: Corrections,
        prefix: Callable[[], ChunkKV],
        prefix_tokens: int,
    ) -> None:
        """prefix: gives the KV of the ingest prefix, behind which new chunks are computed."""
        self._executor = executor
        self._kv = kv
        self._corrections = corrections
        self._prefix = prefix
        self._prefix_tokens = prefix_tokens

    def load(
        self,
        prompt: AssembledPrompt,
        settings: AnswerSettings,
        lease: Lease,
        complete: bool = False,
    ) -> LoadedPrompt:
        """`read` and `capture`, done at once."""
        read = self.read(prompt, settings, lease, complete)
        return read.with_new(finish(self._executor, self.capture(read)) if read.new else ())

    def capture(self, read: ReadPrompt) -> Work[list[ChunkKV]]:
        """Compute isolated KV of the new chunks."""
        tokens = {key: record.encoded.token_ids for key, record in read.new.items()}
        return prefill_chunks_work(self._executor, self._prefix(), tokens)

    def read(
        self,
        prompt: AssembledPrompt,
        settings: AnswerSettings,
        lease: Lease,
        complete: bool = False,
    ) -> ReadPrompt:
        """The prompt with its stored KV. complete: wait for all layers, not only the first ones."""
        at_start = self._at_start(prompt, settings)
        wanted = list(zip(prompt.spans, _kinds(prompt, settings, at_start), strict=True))
        lease.prefetch(_best(wanted))
        loaded: dict[tuple[str, KVKind], LayeredKV | None] = {}
        reasons: dict[str, str] = {}
        for span, variant in wanted:
            name = (span.record.chunk.id, variant)
            if name not in loaded:
                correction, uncorrected = self._correction(span.record, settings)
                kv, reason = self._load_chunk(span.record, variant, correction, lease, complete)
                if kv is None and span.start in at_start:
                    kv, _ = self._load_chunk(span.record, "fused", correction, lease, complete)
                loaded[name] = kv
                if variant == "isolated" and settings.kv == "fused" and span.start not in at_start:
                    reason = reason or _why_isolated(span.record, _UNCERTAIN)
                if kv is not None and kv.kind == "fused":
                    reason = reason or uncorrected
                if reason:
                    reasons[span.record.chunk.id] = reason
        new = {
            span.record.isolated_key: span.record
            for span, variant in wanted
            if span.record.captured and loaded[span.record.chunk.id, variant] is None
        }
        return ReadPrompt(prompt, wanted, loaded, new, reasons)

    def at_hand(self, prompt: AssembledPrompt, settings: AnswerSettings) -> bool:
        """Whether `read` waits for no disk."""
        kinds = _kinds(prompt, settings, self._at_start(prompt, settings))
        return self._kv.at_hand(_best(zip(prompt.spans, kinds, strict=True)))

    def _at_start(self, prompt: AssembledPrompt, settings: AnswerSettings) -> set[int]:
        """The starts of the first chunk's spans, if its context is closer to isolated KV's.

        So it is if what precedes it has less than half the tokens that its fused KV was behind.
        """
        if not (prompt.spans and settings.kv == "fused" and settings.corrected):
            return set()
        first = prompt.spans[0]
        trace = first.record.trace
        chunk, at = first.record.chunk.id, first.start - first.source_start
        if trace is None or at - self._prefix_tokens > trace.neighbour_tokens / 2:
            return set()
        return {
            span.start
            for span in prompt.spans
            if span.record.chunk.id == chunk and span.start - span.source_start == at
        }

    def _without_path(self, reason: str) -> str:
        """A reason for a report, which may be read by people who shouldn't see the store's path."""
        return reason.replace(f"{self._kv.path.parent}{os.sep}", "")

    def _correction(
        self, record: ChunkRecord, settings: AnswerSettings
    ) -> tuple[Correction | None, str]:
        """What is added to the chunk's fused KV, and why there is nothing if there should be."""
        if not settings.corrected or not record.fused_key:
            return None, ""
        correction, reason = self._corrections.of(record.chunk.scope)
        return correction, self._without_path(reason)

    def _load_chunk(
        self,
        record: ChunkRecord,
        wanted: KVKind,
        correction: Correction | None,
        lease: Lease,
        complete: bool,
    ) -> tuple[LayeredKV | None, str]:
        """The chunk's KV: fused if wanted and valid, else isolated; None if neither is usable.

        Also why it isn't the wanted one, or an empty string. Fused KV is corrected.
        """
        unfused = wanted == "fused" and not record.fused_key
        reason = _why_isolated(record, _STALE) if unfused else ""
        for key in _keys(record, wanted):
            try:
                added = correction if key == record.fused_key else None
                kv = lease.get(key, complete, added)
                if kv.token_ids != record.encoded.token_ids:
                    self._kv.count_stale()
                    raise KVForeignError(f"Record {key} holds another chunk's tokens.")
                if added is not None and kv.kind == "fused" and not kv.rotated:
                    return CorrectedKV(kv, added), reason
                return kv, reason
            except KVRecordError as error:
                if record.captured and isinstance(error, KVMissingError):
                    continue  # this request computes it, for itself and later ones
                logger.warning("A KV record of chunk %s isn't used: %s", record.chunk.id, error)
                reason = self._without_path(str(error))
        return None, reason


def _why_isolated(record: ChunkRecord, ingested: str) -> str:
    """ingested: the reason for a chunk that was ingested."""
    return _NEW if record.captured else ingested


def _kinds(
    prompt: AssembledPrompt, settings: AnswerSettings, at_start: Collection[int]
) -> list[KVKind]:
    """Which KV each span is to have."""
    return [
        "isolated" if settings.kv == "isolated" or span.start in at_start else span.variant
        for span in prompt.spans
    ]


def _best(wanted: Iterable[tuple[Span, KVKind]]) -> Iterable[str]:
    """The key of the record that is tried first for each chunk, once."""
    return dict.fromkeys(_keys(span.record, kind)[0] for span, kind in wanted)


def _keys(record: ChunkRecord, wanted: KVKind) -> list[str]:
    """Keys of the KV records that can be used, best first."""
    fused = [record.fused_key] if wanted == "fused" and record.fused_key else []
    return [*fused, record.isolated_key]
