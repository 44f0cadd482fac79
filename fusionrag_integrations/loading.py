"""AssembledPrompt -> LoadedPrompt: the KV of a prompt's chunks, the best that can be had."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace

from fusionrag_integrations.chunk_kv import prefill_chunks
from fusionrag_integrations.correction import CorrectedKV, Correction
from fusionrag_integrations.corrections import Corrections
from fusionrag_integrations.errors import KVForeignError, KVMissingError, KVRecordError
from fusionrag_integrations.model import CausalModel
from fusionrag_integrations.store import Lease, TieredKV
from fusionrag_integrations.timing import Stopwatch
from fusionrag_integrations.types import (
    AnswerSettings,
    AssembledPrompt,
    ChunkKV,
    ChunkRecord,
    KVKind,
    LayeredKV,
    LoadedPrompt,
    Span,
)

logger = logging.getLogger(__name__)

_NEW = "It came with a question, and hasn't been used often enough to be fused."
_STALE = "It isn't fused: ingest was not finished, or what it was fused behind has changed."
_UNCERTAIN = "Nothing says which chunk it is: several have this text, or the prompt cuts it short."


class ChunkLoading:
    """Takes chunks' KV from the tiers; that of new chunks, which have none yet, it computes."""

    def __init__(
        self,
        model: CausalModel,
        kv: TieredKV,
        corrections: Corrections,
        prefix: Callable[[], ChunkKV],
        prefix_tokens: int,
    ) -> None:
        """prefix: gives the KV of the ingest prefix, behind which new chunks are computed."""
        self._model = model
        self._kv = kv
        self._corrections = corrections
        self._prefix = prefix
        self._prefix_tokens = prefix_tokens

    def load(
        self,
        prompt: AssembledPrompt,
        settings: AnswerSettings,
        lease: Lease,
        watch: Stopwatch,
        complete: bool = False,
    ) -> LoadedPrompt:
        """The prompt with its KV. complete: all of it, else layers may be on their way."""
        fitted = settings.kv == "fused" and settings.corrected
        at_start = self._at_start(prompt) if fitted else set()
        variants: list[KVKind] = [
            "isolated" if settings.kv == "isolated" or span.start in at_start else span.variant
            for span in prompt.spans
        ]
        wanted = list(zip(prompt.spans, variants, strict=True))
        lease.begin(dict.fromkeys(_keys(span.record, variant)[0] for span, variant in wanted))
        loaded: dict[tuple[str, KVKind], LayeredKV | None] = {}
        reasons: dict[str, str] = {}
        kept: list[Span] = []
        kvs: list[LayeredKV] = []
        missed: list[Span] = []
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
        return LoadedPrompt(prompt, tuple(kvs), tuple(missed), captured, reasons)

    def _at_start(self, prompt: AssembledPrompt) -> set[int]:
        """Where spans of a chunk start that stands first, as isolated KV was computed.

        Nothing but a prefix stands before it: less than half of what its fused KV has seen.
        """
        if not prompt.spans:
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

    def _capture(self, records: Iterable[ChunkRecord]) -> dict[str, ChunkKV]:
        """Isolated KV of new chunks, by their ids."""
        new = {record.isolated_key: record for record in records}
        if not new:
            return {}
        tokens = {key: record.encoded.token_ids for key, record in new.items()}
        kvs = prefill_chunks(self._model, self._prefix(), tokens)
        return {new[kv.key].chunk.id: kv for kv in kvs}

    def _told(self, reason: str) -> str:
        """A reason for those who read a report: where the store lies isn't theirs to know."""
        return reason.replace(f"{self._kv.path.parent}{os.sep}", "")

    def _correction(
        self, record: ChunkRecord, settings: AnswerSettings
    ) -> tuple[Correction | None, str]:
        """What is added to the chunk's fused KV, and why nothing is where something should be."""
        if not settings.corrected or not record.fused_key:
            return None, ""
        correction, reason = self._corrections.of(record.chunk.scope)
        return correction, self._told(reason)

    def _load_chunk(
        self,
        record: ChunkRecord,
        wanted: KVKind,
        correction: Correction | None,
        lease: Lease,
        complete: bool,
    ) -> tuple[LayeredKV | None, str]:
        """The chunk's KV: fused if wanted and true, else isolated; None if neither is usable.

        And why it isn't what is wanted; empty where it is. Fused KV comes corrected.
        """
        unfused = wanted == "fused" and not record.fused_key
        reason = _why_isolated(record, _STALE) if unfused else ""
        for key in _keys(record, wanted):
            try:
                corrected = correction is not None and key == record.fused_key
                kv = lease.get(key, complete, stored=corrected)
                if kv.token_ids != record.encoded.token_ids:
                    self._kv.foreign(key)
                    raise KVForeignError(f"Record {key} holds another chunk's tokens.")
                if correction is not None and kv.kind == "fused":
                    return CorrectedKV(kv, correction), reason
                return kv, reason
            except KVRecordError as error:
                if record.captured and isinstance(error, KVMissingError):
                    continue  # it is computed in this request, for this and later ones
                logger.warning("A KV record of chunk %s isn't used: %s", record.chunk.id, error)
                reason = self._told(str(error))
        return None, reason


def _why_isolated(record: ChunkRecord, ingested: str) -> str:
    """ingested: the reason if it is a chunk that was."""
    return _NEW if record.captured else ingested


def _keys(record: ChunkRecord, wanted: KVKind) -> list[str]:
    """Keys of the records that will do, best first."""
    fused = [record.fused_key] if wanted == "fused" and record.fused_key else []
    return [*fused, record.isolated_key]
