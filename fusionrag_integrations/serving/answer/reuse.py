"""What was placed for a prompt, and how the answer reports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.execution.known_start import NOTHING_KNOWN, KnownStart
from fusionrag_integrations.prompt.assembled import Span
from fusionrag_integrations.selectors.selection import TokenSelection
from fusionrag_integrations.serving.loading import LoadedPrompt
from fusionrag_integrations.serving.usage import Usage


@dataclass(frozen=True, slots=True)
class Fallback:
    """A chunk whose KV is not what was asked for. used: None where its tokens were computed."""

    chunk_id: str
    document_id: str
    used: KVKind | None
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Reuse:
    """What was placed for a prompt, without the KV itself. See `LoadedPrompt`.

    spans: the prompt's, each with the kind of its KV. adhoc: ids of the chunks whose KV was
    computed for it. known: so many tokens at the start were known as they are; is_exact: whether as
    under full attention.
    """

    spans: tuple[Span, ...]
    missed: tuple[Span, ...]
    adhoc: frozenset[str]
    reasons: Mapping[str, str]
    selection: TokenSelection
    known: int = 0
    is_exact: bool = True

    @classmethod
    def of(
        cls,
        loaded: LoadedPrompt,
        selection: TokenSelection,
        start: KnownStart = NOTHING_KNOWN,
    ) -> Reuse:
        """selection: the tokens that were recomputed. start: what the prompt begins with."""
        return cls(
            loaded.prompt.spans,
            loaded.missed,
            frozenset(loaded.adhoc),
            loaded.reasons,
            selection,
            len(start),
            start.exact,
        )

    def usage(self, loaded: LoadedPrompt, token_layers: int, layers: int) -> Usage:
        """How the prompt's tokens were obtained. token_layers: of its probes and its recompute.

        layers: the model's, which new chunks ran through besides.
        """
        prompt = loaded.prompt
        found, selected = len(prompt.chunk_positions), set(self.selection.positions)
        captured = sum(
            position not in selected
            for span in prompt.spans
            if span.record.chunk.id in loaded.adhoc
            for position in range(span.start, span.stop)
        )
        prefilled = sum(len(kv.token_ids) for kv in loaded.adhoc.values())
        return Usage(
            prompt_tokens=len(prompt),
            reused_tokens=self.known + found - len(self.selection) - captured,
            recomputed_tokens=len(self.selection),
            fresh_tokens=len(prompt) - self.known - found,
            missed_tokens=sum(span.length for span in loaded.missed),
            completion_tokens=0,
            token_layers=token_layers + layers * prefilled,
            captured_tokens=captured,
            prefix_tokens=self.known if self.is_exact else 0,
            history_tokens=0 if self.is_exact else self.known,
        )

    def counts(self) -> dict[str, int]:
        """How many chunks there are of each kind, as fields of `Answer`: each occurrence counts."""
        kinds = {_occurrence(span): span.variant for span in self.spans}
        adhoc = [span for span in self.spans if span.record.chunk.id in self.adhoc]
        return {
            "fused_chunks": sum(kind == "fused" for kind in kinds.values()),
            "isolated_chunks": sum(kind == "isolated" for kind in kinds.values()),
            "missed_chunks": len(set(map(_occurrence, self.missed))),
            "captured_chunks": len(set(map(_occurrence, adhoc))),
        }

    def fallbacks(self) -> tuple[Fallback, ...]:
        """Chunks whose KV is not what was asked for, in the prompt's order, each once."""
        missed = {span.start for span in self.missed}
        found: dict[str, Fallback] = {}
        for span in self.in_order():
            chunk = span.record.chunk
            if reason := self.reasons.get(chunk.id):
                used = None if span.start in missed else span.variant
                found.setdefault(chunk.id, Fallback(chunk.id, chunk.document_id, used, reason))
        return tuple(found.values())

    def in_order(self) -> list[Span]:
        """All spans, missed ones too, in order of position."""
        return sorted((*self.spans, *self.missed), key=lambda span: span.start)

    def why_all(self) -> str:
        """Why nothing of the prompt is reused; empty where something is."""
        if self.spans or self.known:
            return ""
        if self.missed:
            return "no KV of its chunks could be used."
        return "no text of the store stands in it."


def _occurrence(span: Span) -> tuple[str, int]:
    """Identifies an occurrence of a chunk, which may have several spans."""
    return span.record.chunk.id, span.start - span.source_start
