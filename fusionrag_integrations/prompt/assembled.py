"""A prompt as tokens, with the runs of them whose KV is known. Positions count tokens from 0."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class TextMatch:
    """Characters [start, stop) of a prompt that equal the first characters of a known chunk.

    Where the prompt lacks the chunk's indentation, start is where it would begin.
    """

    record: ChunkRecord
    start: int
    stop: int
    variant: KVKind = "fused"


@dataclass(frozen=True, slots=True)
class Span:
    """A run of a chunk's tokens in a prompt.

    The chunk's tokens [source_start, source_start + length) are at the prompt's positions
    [start, start + length).
    """

    record: ChunkRecord
    variant: KVKind
    source_start: int
    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class AssembledPrompt:
    """A prompt as tokens, with the runs whose KV is known.

    Spans are in order of position, don't overlap, and never hold the last token: it is
    always computed, since its logits give the first token of the answer.
    `question` bounds the positions after the last chunk that hold the user's text.
    `known`: of so many tokens at the start the KV is known as it is, whatever they are of.
    `chunk_positions` are those of chunks behind them, `fresh_positions` all others, which must be
    computed; both ascending.
    """

    token_ids: tuple[int, ...]
    spans: tuple[Span, ...]
    question: tuple[int, int]
    known: int = 0
    chunk_positions: tuple[int, ...] = field(init=False, repr=False, compare=False)
    fresh_positions: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise InvalidInputError("The prompt is empty.")
        stop = self.known
        chunks: list[int] = []
        fresh: list[int] = []
        for span in self.spans:
            if span.start < stop or span.length < 1:
                raise InvalidInputError("Spans must be non-empty, in order and apart.")
            fresh += range(stop, span.start)
            chunks += range(span.start, span.stop)
            stop = span.stop
        if stop >= len(self.token_ids):
            raise InvalidInputError("The prompt's last token can't belong to a chunk.")
        fresh += range(stop, len(self.token_ids))
        object.__setattr__(self, "chunk_positions", tuple(chunks))
        object.__setattr__(self, "fresh_positions", tuple(fresh))

    def __len__(self) -> int:
        return len(self.token_ids)

    def behind(self, known: int) -> AssembledPrompt:
        """The same with so many tokens known at the start: what chunks have of them is cut off."""
        spans = []
        for span in self.spans:
            cut = max(0, known - span.start)
            if cut < span.length:
                start, length = span.start + cut, span.length - cut
                spans.append(
                    replace(span, source_start=span.source_start + cut, start=start, length=length)
                )
        return replace(self, spans=tuple(spans), known=known)

    @property
    def occurrences(self) -> list[list[Span]]:
        """The spans of each placed chunk; boundary tokens can split one into several."""
        return occurrences(self.spans)

    @property
    def positions_by_chunk(self) -> list[list[int]]:
        """The positions of each placed chunk's tokens, in order."""
        return [
            [position for span in spans for position in range(span.start, span.stop)]
            for spans in self.occurrences
        ]


def occurrences(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans in order of position, grouped by the occurrence of a chunk that they are of."""
    chunks: list[list[Span]] = []
    for span in spans:
        before = chunks[-1][-1] if chunks else None
        continues = (
            before is not None
            and before.record.chunk.id == span.record.chunk.id
            and before.source_start + before.length <= span.source_start
        )
        if continues:
            chunks[-1].append(span)
        else:
            chunks.append([span])
    return chunks
