"""How each of a prompt's tokens was obtained; made of what the request had anyway."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.prompt.assembled import occurrences
from fusionrag_integrations.serving.answer.reuse import Reuse

TokenFate = Literal["reused", "recomputed", "captured", "fresh"]

NeighbourLookup = Callable[[Sequence[ChunkRecord]], Mapping[str, Sequence[Chunk]]]
"""Gives the chunks behind which each record's fused KV was computed, by its chunk's id."""


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Text of consecutive tokens that were obtained in the same way."""

    text: str
    fate: TokenFate


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A part of the prompt: a chunk, or the text between chunks.

    kind: of the chunk's KV; None where there was none, or there is no chunk.
    """

    runs: tuple[TokenRun, ...]
    chunk: Chunk | None = None
    kind: KVKind | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PromptTrace:
    """A prompt as it was answered.

    text, offsets: the prompt, and each token's character bounds in it. reuse: what was placed; None
    where all was computed. neighbours: looks them up in the store when they are shown; those that
    have changed since are left out.
    """

    text: str
    offsets: tuple[tuple[int, int], ...]
    reuse: Reuse | None = None
    neighbours: NeighbourLookup = lambda records: {}

    def passages(self) -> list[PromptPart]:
        """The whole prompt, in order; together the runs' texts are its text."""
        passages = []
        begin = 0  # the first token that is in no passage yet
        fates = self.fates()
        missed = {span.start for span in self.reuse.missed} if self.reuse else set()
        for spans in occurrences(self.reuse.in_order() if self.reuse else ()):
            if spans[0].start > begin:
                passages.append(PromptPart(self._runs(begin, spans[0].start, fates)))
            record = spans[0].record
            kind = None if spans[0].start in missed else spans[0].variant
            begin = spans[-1].stop
            runs = self._runs(spans[0].start, begin, fates)
            passages.append(PromptPart(runs, record.chunk, kind))
        if begin < len(self.offsets):
            passages.append(PromptPart(self._runs(begin, len(self.offsets), fates)))
        return passages

    def fused_behind(self) -> Mapping[str, Sequence[Chunk]]:
        """The neighbours of the chunks whose fused KV was placed, by their ids."""
        spans = self.reuse.spans if self.reuse else ()
        fused = {s.record.chunk.id: s.record for s in spans if s.variant == "fused"}
        return self.neighbours(list(fused.values()))

    def fates(self) -> list[TokenFate]:
        """What became of each token."""
        fates: list[TokenFate] = ["fresh"] * len(self.offsets)
        if self.reuse is None:
            return fates
        fates[: self.reuse.known] = ["reused"] * self.reuse.known
        for span in self.reuse.spans:
            computed = span.record.chunk.id in self.reuse.adhoc
            known: TokenFate = "captured" if computed else "reused"
            fates[span.start : span.stop] = [known] * span.length
        for position in self.reuse.selection.positions:
            fates[position] = "recomputed"
        return fates

    def _runs(self, start: int, stop: int, fates: list[TokenFate]) -> tuple[TokenRun, ...]:
        runs = []
        while start < stop:
            end = start + 1
            while end < stop and fates[end] == fates[start]:
                end += 1
            runs.append(TokenRun(self.text[self._begin(start) : self._begin(end)], fates[start]))
            start = end
        return tuple(runs)

    def _begin(self, position: int) -> int:
        """The character from which on text belongs to this token or those after it."""
        if position == 0:
            return 0
        if position == len(self.offsets):
            return len(self.text)
        return self.offsets[position][0]
