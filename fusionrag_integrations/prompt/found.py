"""A known text found in a prompt, and the comparison that finds it.

Texts are compared without their first line's indentation, since frameworks cut it: LlamaIndex
strips nodes. Where the prompt has it, it is reused as all else is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fusionrag_integrations.documents.chunk_record import ChunkRecord

MIN_PREFIX = 64  # characters that a cut chunk must still have

ReadRecords = Callable[[Sequence[str]], Mapping[str, ChunkRecord]]
"""From chunk ids to records by id; unknown ids are left out."""


@dataclass(frozen=True, slots=True)
class FoundText:
    """Characters [start, stop) of a prompt that equal a known text from its indentation on.

    records: the chunks that have this text; where very many have it, some, but never only one.
    complete: whether it is the whole text.
    """

    start: int
    stop: int
    records: tuple[ChunkRecord, ...]
    complete: bool


class TextComparison:
    """Compares known texts with a prompt, character by character; reads each record once."""

    def __init__(self, prompt: str, read_records: ReadRecords) -> None:
        self._prompt = prompt
        self._read = read_records
        self._known: dict[str, ChunkRecord] = {}

    def records(self, chunk_ids: Sequence[str]) -> list[ChunkRecord]:
        """Records of these chunks, read at once, in order, without those that are gone."""
        if missing := [i for i in chunk_ids if i not in self._known]:
            self._known.update(self._read(missing))
        return [self._known[i] for i in chunk_ids if i in self._known]

    def common_length(self, start: int, chunk_id: str) -> int:
        """How many of the chunk's first characters the prompt has at `start`; 0 if it is gone."""
        records = self.records([chunk_id])
        return _common_length(self._prompt, start, body(records[0])) if records else 0

    def found(self, start: int, chunk_ids: Sequence[str]) -> list[FoundText]:
        """The text of these chunks if the prompt has it at `start`, else an empty list."""
        records = self.records(chunk_ids)
        if not records:
            return []
        text = body(records[0])
        length = _common_length(self._prompt, start, text)
        if length < min(len(text), MIN_PREFIX):
            return []
        same = [record for record in records if body(record) == text]
        before = self._prompt[max(0, start - max(map(indentation, same))) : start]
        best = max(same, key=lambda record: _matching_indentation(before, record))
        alike = tuple(record for record in same if record.chunk.text == best.chunk.text)
        return [FoundText(start, start + length, alike, length == len(text))]


def body(record: ChunkRecord) -> str:
    """A chunk's text without its first line's indentation."""
    return record.chunk.text.lstrip()


def indentation(record: ChunkRecord) -> int:
    """Characters before a chunk's body."""
    return len(record.chunk.text) - len(body(record))


def _matching_indentation(before: str, record: ChunkRecord) -> int:
    """The length of a chunk's indentation if `before` ends in it, else less than 0."""
    length = indentation(record)
    return length if before.endswith(record.chunk.text[:length]) else -length


def _common_length(prompt: str, start: int, text: str) -> int:
    """How many of the text's first characters the prompt has at `start`."""
    if prompt.startswith(text, start):
        return len(text)
    low, high = 0, min(len(text), len(prompt) - start)
    while low < high:
        middle = (low + high + 1) // 2
        if prompt.startswith(text[:middle], start):
            low = middle
        else:
            high = middle - 1
    return low
