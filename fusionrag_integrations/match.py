"""Known chunk texts in a prompt, found by content: frameworks strip and re-join what we give them.

Candidates named by handles are looked for first. Everything else is found through an index of
anchors: the first characters of each known text, looked up at every position of the prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fusionrag_integrations.types import ChunkRecord, KVHandle, KVKind, TextMatch

ANCHOR = 32  # characters; shorter texts need a handle
MIN_PREFIX = 64  # characters that a cut chunk must still have


@dataclass(frozen=True, slots=True)
class FoundText:
    """Characters [start, stop) of a prompt that equal the first characters of a known text.

    chunk_ids: every chunk that has this text. complete: whether it is the whole text.
    """

    start: int
    stop: int
    chunk_ids: tuple[str, ...]
    complete: bool


class ChunkMatcher:
    """The known texts, ready to be found in prompts. Never changes once made."""

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        """texts: chunk ids with canonical texts; several chunks may have the same text."""
        ids_of: dict[str, list[str]] = defaultdict(list)
        for chunk_id, text in texts:
            ids_of[text].append(chunk_id)
        self._ids_of = {text: tuple(ids) for text, ids in ids_of.items()}
        self._text_of = {chunk_id: text for text, ids in ids_of.items() for chunk_id in ids}
        self._anchors: dict[str, list[str]] = defaultdict(list)
        for text in self._ids_of:
            if len(text) >= ANCHOR:
                self._anchors[text[:ANCHOR]].append(text)
        for group in self._anchors.values():
            group.sort(key=len, reverse=True)

    def find(self, prompt: str, handles: Sequence[KVHandle] = ()) -> list[FoundText]:
        """Known texts in the prompt, in order, without overlap; the leftmost and longest wins.

        Texts shorter than `ANCHOR` characters are found only where a handle names them. A text
        that the prompt cuts short is found as far as it goes, from `MIN_PREFIX` characters on.
        """
        named = {self._text_of[h.chunk_id] for h in handles if h.chunk_id in self._text_of}
        found: list[FoundText] = []
        at = 0
        for start, text in self._candidates(prompt, named):
            if start < at:
                continue
            length = len(text) if prompt.startswith(text, start) else _common(prompt, start, text)
            if length == len(text) or length >= MIN_PREFIX:
                stop = start + length
                found.append(FoundText(start, stop, self._ids_of[text], length == len(text)))
                at = stop
        return found

    def _candidates(self, prompt: str, named: set[str]) -> Iterator[tuple[int, str]]:
        """Starts with the texts that may stand there; whole texts before cut, long before short."""
        anchors = self._anchors
        by_start: dict[int, list[str]] = {
            start: list(anchors[anchor])
            for start in range(len(prompt) - ANCHOR + 1)
            if (anchor := prompt[start : start + ANCHOR]) in anchors
        }
        for text in named:
            if len(text) < ANCHOR:
                start = prompt.find(text)
                while start >= 0:
                    by_start.setdefault(start, []).append(text)
                    start = prompt.find(text, start + len(text))
        for start in sorted(by_start):
            texts = sorted(by_start[start], key=len, reverse=True)
            whole = [text for text in texts if prompt.startswith(text, start)]
            if whole:
                yield start, whole[0]
            else:
                yield start, max(texts, key=lambda text: _common(prompt, start, text))


def _common(prompt: str, start: int, text: str) -> int:
    """How many of the text's first characters stand in the prompt at `start`."""
    low, high = 0, min(len(text), len(prompt) - start)
    while low < high:
        middle = (low + high + 1) // 2
        if prompt.startswith(text[:middle], start):
            low = middle
        else:
            high = middle - 1
    return low


def resolve(
    found: Sequence[FoundText],
    records: Mapping[str, ChunkRecord],
    handles: Sequence[KVHandle],
) -> list[TextMatch]:
    """Decide which chunk each found text is, where several have the same text.

    The i-th occurrence of a text is the i-th handle that names one of its chunks; else the chunk
    whose document's previous chunk stands just before it in the prompt; else the only chunk
    there is. Failing all that it is any of them, isolated: isolated KV is the same for all.
    Chunks without a record are gone, and match nothing.
    """
    waiting: dict[tuple[str, ...], list[str]] = defaultdict(list)
    text_ids = {chunk_id: text.chunk_ids for text in found for chunk_id in text.chunk_ids}
    for handle in handles:
        if handle.chunk_id in text_ids and handle.chunk_id in records:
            waiting[text_ids[handle.chunk_id]].append(handle.chunk_id)
    matches: list[TextMatch] = []
    for text in found:
        candidates = [records[i] for i in text.chunk_ids if i in records]
        if not candidates:
            continue
        named = waiting[text.chunk_ids]
        previous = matches[-1].record if matches else None
        variant: KVKind = "fused"
        if named:
            record = records[named.pop(0)]
        elif followers := [c for c in candidates if _follows(c, previous)]:
            record = followers[0]
        else:
            record = candidates[0]
            variant = "fused" if len(candidates) == 1 else "isolated"
        matches.append(TextMatch(record, text.start, text.stop, variant))
    return matches


def _follows(record: ChunkRecord, previous: ChunkRecord | None) -> bool:
    return (
        previous is not None
        and previous.chunk.document_id == record.chunk.document_id
        and previous.chunk.index + 1 == record.chunk.index
    )
