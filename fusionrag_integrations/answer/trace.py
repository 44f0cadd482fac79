"""What became of a prompt's tokens: kept with the answer as what the request had anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fusionrag_integrations.answer.reuse import Reuse
from fusionrag_integrations.types import Chunk, ChunkRecord, KVKind, Span

TokenFate = Literal["reused", "recomputed", "captured", "fresh"]

Neighbours = Callable[[Sequence[ChunkRecord]], Mapping[str, Sequence[Chunk]]]
"""Gives the chunks that each record's fused KV was made behind, by its chunk's id."""


@dataclass(frozen=True, slots=True)
class Run:
    """Text of consecutive tokens that fared alike."""

    text: str
    fate: TokenFate


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of the prompt: a chunk, or what stands between chunks. kind: of the chunk's KV.

    kind is None where there was none, or there is no chunk.
    """

    runs: tuple[Run, ...]
    chunk: Chunk | None = None
    kind: KVKind | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PromptTrace:
    """A prompt as it was answered.

    text, offsets: the prompt, and each token's character bounds in it. reuse: what was placed; None
    where all was computed. neighbours: asks the store, when they are shown; what has changed since
    is left out.
    """

    text: str
    offsets: tuple[tuple[int, int], ...]
    reuse: Reuse | None = None
    neighbours: Neighbours = lambda records: {}

    def passages(self) -> list[Passage]:
        """The whole prompt, in order; together the runs' texts are its text."""
        passages = []
        begin = 0  # the first token that is in no passage yet
        fates = self._fates()
        missed = {span.start for span in self.reuse.missed} if self.reuse else set()
        for spans in self._occurrences():
            if spans[0].start > begin:
                passages.append(Passage(self._runs(begin, spans[0].start, fates)))
            record = spans[0].record
            kind = None if spans[0].start in missed else spans[0].variant
            begin = spans[-1].stop
            runs = self._runs(spans[0].start, begin, fates)
            passages.append(Passage(runs, record.chunk, kind))
        if begin < len(self.offsets):
            passages.append(Passage(self._runs(begin, len(self.offsets), fates)))
        return passages

    def fused_behind(self) -> Mapping[str, Sequence[Chunk]]:
        """The neighbours of the chunks whose fused KV was placed, by their ids."""
        spans = self.reuse.spans if self.reuse else ()
        fused = {s.record.chunk.id: s.record for s in spans if s.variant == "fused"}
        return self.neighbours(list(fused.values()))

    def _fates(self) -> list[TokenFate]:
        fates: list[TokenFate] = ["fresh"] * len(self.offsets)
        if self.reuse is None:
            return fates
        for span in self.reuse.spans:
            new = span.record.chunk.id in self.reuse.captured
            known: TokenFate = "captured" if new else "reused"
            fates[span.start : span.stop] = [known] * span.length
        for position in self.reuse.selection.positions:
            fates[position] = "recomputed"
        return fates

    def _occurrences(self) -> Iterator[list[Span]]:
        """Runs of one chunk that stand together: a token that a boundary changed splits it."""
        group: list[Span] = []
        for span in self.reuse.in_order() if self.reuse else ():
            last = group[-1] if group else None
            goes_on = (
                last is not None
                and last.record.chunk.id == span.record.chunk.id
                and last.source_start + last.length <= span.source_start
            )
            if group and not goes_on:
                yield group
                group = []
            group.append(span)
        if group:
            yield group

    def _runs(self, start: int, stop: int, fates: list[TokenFate]) -> tuple[Run, ...]:
        runs = []
        while start < stop:
            end = start + 1
            while end < stop and fates[end] == fates[start]:
                end += 1
            runs.append(Run(self.text[self._begin(start) : self._begin(end)], fates[start]))
            start = end
        return tuple(runs)

    def _begin(self, position: int) -> int:
        """The character from which on text belongs to this token or those behind it."""
        if position == 0:
            return 0
        if position == len(self.offsets):
            return len(self.text)
        return self.offsets[position][0]
