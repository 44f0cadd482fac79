"""Known chunk texts in a prompt, found by content: frameworks strip and re-join what we give them.

prompt --fingerprints--> sites --records, compared--> FoundText --resolve--> TextMatch

Of the texts only fingerprints are kept, a few numbers a chunk. They say where to look; what is
found there was compared character by character, so texts that share a fingerprint do no harm.

Texts are looked for without their first line's indentation, which frameworks cut: LlamaIndex strips
nodes. Where it stands in the prompt, it is reused as all else is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusionrag_integrations.fingerprints import Integers, Prints, fingerprints, positions
from fusionrag_integrations.types import ChunkRecord, KVHandle, KVKind, TextMatch

ANCHOR = 32  # characters; shorter texts need a handle
MIN_PREFIX = 64  # characters that a cut chunk must still have
MAX_CANDIDATES = 16  # chunks whose records are read for one place, beside the likely ones

_BEGINNINGS = (ANCHOR, MIN_PREFIX)
_BATCH = 200  # texts read and fingerprinted at a time

ReadTexts = Callable[[Sequence[str]], Iterable[tuple[str, str, str]]]
"""From chunk ids to ids, scopes and texts; unknown ids are left out."""
ReadRecords = Callable[[Sequence[str]], Mapping[str, ChunkRecord]]
"""From chunk ids to records by id; unknown ids are left out."""
Rows = Integers
"""Chunks, by their number in the order that they were given in."""


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


class ChunkMatcher:
    """The known texts, ready to be found in prompts. Never changes once made.

    A text's key is its first `MIN_PREFIX` characters, or all of a shorter text. Where a key
    stands in a prompt, a text with this key does too, whole or cut: fingerprints of the whole
    texts tell which.
    """

    def __init__(
        self, chunk_ids: Sequence[str], read_texts: ReadTexts, last: ChunkMatcher | None = None
    ) -> None:
        """Know these chunks, of which each document's stand in order.

        last: the matcher that this one replaces. Only texts that it doesn't know are read: an
        id stands for one text in one scope for ever.
        """
        self._ids = list(chunk_ids)
        self._row_of = {chunk_id: row for row, chunk_id in enumerate(self._ids)}
        self._scopes: dict[str, int] = {} if last is None else dict(last._scopes)
        self._hashes = np.zeros((len(self._ids), 3), np.uint64)  # anchor, key, whole text
        self._lengths = np.zeros(len(self._ids), np.int64)  # characters; 0 where it isn't known
        self._scope_of = np.zeros(len(self._ids), np.int64)
        if last is not None:
            self._take_over(last)
        self._read_missing(read_texts)
        anchors, keys, self._wholes = self._hashes.T
        # Rows by key; of one key the longest texts first; equal texts together, in order.
        self._order = np.lexsort((self._wholes, -self._lengths, keys))
        self._keys, first = np.unique(keys[self._order], return_index=True)
        self._bounds = [*first.tolist(), len(self._ids)]
        findable = self._lengths >= ANCHOR
        self._anchors = np.unique(anchors[findable])
        key_lengths = np.unique(np.minimum(self._lengths[findable], MIN_PREFIX))
        self._key_lengths: list[int] = key_lengths[::-1].tolist()
        # One look into this table rules out most places of a prompt.
        bits = max(10, (16 * len(self._anchors)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._maybe = np.zeros(1 << bits, np.bool_)
        self._maybe[self._anchors >> self._shift] = True

    def find(
        self,
        prompt: str,
        read_records: ReadRecords,
        handles: Sequence[KVHandle] = (),
        scopes: Sequence[str] | None = None,
    ) -> list[FoundText]:
        """Known texts in the prompt, in order, without overlap; the leftmost and longest wins.

        Texts shorter than `ANCHOR` characters are found only where a handle names them. A text
        that the prompt cuts short is found as far as it goes, from `MIN_PREFIX` characters on;
        where more than `MAX_CANDIDATES` texts begin alike, not all are tried for that. scopes:
        those whose chunks may be found; None for all.
        """
        reader = _Reader(prompt, read_records)
        allowed = None if scopes is None else [self._scopes.get(scope, -1) for scope in scopes]
        rows = [self._row_of[h.chunk_id] for h in handles if h.chunk_id in self._row_of]
        named = self._allowed(np.array(rows, np.int64), allowed)
        texts = [_body(record) for record in reader.records(self._names(named))]
        prints = Prints(prompt)
        places = self._places(prints)
        for text in dict.fromkeys(text for text in texts if len(text) < ANCHOR):
            (key,) = positions(self._keys, fingerprints([text], _BEGINNINGS)[:, 1]).tolist()
            for start in _occurrences(prompt, text):
                places[start].append(key)
        sites: list[tuple[int, list[str]]] = []  # start, chunks with the text that stands there
        stop, likely = 0, named  # likely: those with a handle, and those that come next
        for start in sorted(places):
            if start < stop:
                continue
            groups = [self._allowed(self._rows(key), allowed) for key in places[start]]
            copies, length = self._longest_whole(prints, start, groups)
            if not length:
                copies, length = self._longest_cut(reader, start, groups[0], named)
            few = self._few(copies, likely)
            sites.append((start, self._names(few)))
            stop, likely = start + length, np.append(named, few[:MAX_CANDIDATES] + 1)
        reader.records([name for _, names in sites for name in names])
        found: list[FoundText] = []
        for start, names in sites:
            if not found or start >= found[-1].stop:
                found += reader.compared(start, names)
        return found

    def _take_over(self, last: ChunkMatcher) -> None:
        rows = np.array([last._row_of.get(name, -1) for name in self._ids], np.int64)
        known = rows >= 0
        self._hashes[known] = last._hashes[rows[known]]
        self._lengths[known] = last._lengths[rows[known]]
        self._scope_of[known] = last._scope_of[rows[known]]

    def _read_missing(self, read_texts: ReadTexts) -> None:
        missing = self._names(np.flatnonzero(self._lengths == 0))
        for start in range(0, len(missing), _BATCH):
            read = list(read_texts(missing[start : start + _BATCH]))
            rows = [self._row_of[chunk_id] for chunk_id, _, _ in read]
            bodies = [text.lstrip() for _, _, text in read]
            self._hashes[rows] = fingerprints(bodies, _BEGINNINGS)
            self._lengths[rows] = [len(body) for body in bodies]
            self._scope_of[rows] = [
                self._scopes.setdefault(scope, len(self._scopes)) for _, scope, _ in read
            ]

    def _places(self, prints: Prints) -> defaultdict[int, list[int]]:
        """Where keys stand in a prompt, and which, by number: the longest first."""
        anchors = prints.everywhere(ANCHOR)
        starts = np.flatnonzero(self._maybe[anchors >> self._shift])
        starts = starts[positions(self._anchors, anchors[starts]) >= 0]
        places: defaultdict[int, list[int]] = defaultdict(list)
        for length in self._key_lengths:
            fitting = starts[starts + length <= prints.length]
            keys = positions(self._keys, prints.of(fitting, length))
            for start, key in zip(fitting.tolist(), keys.tolist(), strict=True):
                if key >= 0:
                    places[start].append(key)
        return places

    def _longest_whole(
        self, prints: Prints, start: int, groups: Sequence[Rows]
    ) -> tuple[Rows, int]:
        """The chunks with the longest text that stands whole at `start`, and its length, or 0."""
        for rows in groups:
            rows = rows[self._lengths[rows] <= prints.length - start]
            wholes = self._wholes[rows]
            equal = np.flatnonzero(prints.of(start, self._lengths[rows]) == wholes)
            if len(equal):
                longest = equal[0]
                return rows[wholes == wholes[longest]], int(self._lengths[rows[longest]])
        return groups[0][:0], 0

    def _longest_cut(
        self, reader: _Reader, start: int, rows: Rows, named: Rows
    ) -> tuple[Rows, int]:
        """The chunks with the text that goes furthest from `start` on, and how far, or 0."""
        tried = self._few(rows, named)
        reader.records(self._names(tried))
        lengths = [reader.common(start, name) for name in self._names(tried)]
        length = max(lengths, default=0)
        if not length:
            return rows[:0], 0
        best = tried[lengths.index(length)]
        return rows[self._wholes[rows] == self._wholes[best]], length

    def _few(self, rows: Rows, likely: Rows) -> Rows:
        """All of few chunks; of many the likely ones, one each of some texts, and the first."""
        if len(rows) <= MAX_CANDIDATES:
            return rows
        wholes = self._wholes[rows]
        distinct = rows[np.append(True, wholes[1:] != wholes[:-1])]
        parts = rows[np.isin(rows, likely)], distinct[:MAX_CANDIDATES], rows[:MAX_CANDIDATES]
        return np.array(list(dict.fromkeys(np.concatenate(parts).tolist())), np.int64)

    def _rows(self, key: int) -> Rows:
        return self._order[self._bounds[key] : self._bounds[key + 1]]

    def _names(self, rows: Rows) -> list[str]:
        return [self._ids[row] for row in rows.tolist()]

    def _allowed(self, rows: Rows, scopes: Sequence[int] | None) -> Rows:
        return rows if scopes is None else rows[np.isin(self._scope_of[rows], scopes)]


class _Reader:
    """Compares known texts with a prompt; reads each record once."""

    def __init__(self, prompt: str, read_records: ReadRecords) -> None:
        self._prompt = prompt
        self._read = read_records
        self._known: dict[str, ChunkRecord] = {}

    def records(self, chunk_ids: Sequence[str]) -> list[ChunkRecord]:
        """Records of these chunks, read at once, in order, without those that are gone."""
        if missing := [i for i in chunk_ids if i not in self._known]:
            self._known.update(self._read(missing))
        return [self._known[i] for i in chunk_ids if i in self._known]

    def common(self, start: int, chunk_id: str) -> int:
        """How many of the chunk's first characters stand at `start`; 0 where it is gone."""
        records = self.records([chunk_id])
        return _common(self._prompt, start, _body(records[0])) if records else 0

    def compared(self, start: int, chunk_ids: Sequence[str]) -> list[FoundText]:
        """What stands at `start` of the text of these chunks: one finding or none."""
        records = self.records(chunk_ids)
        if not records:
            return []
        body = _body(records[0])
        length = _common(self._prompt, start, body)
        if length < min(len(body), MIN_PREFIX):
            return []
        same = [record for record in records if _body(record) == body]
        before = self._prompt[max(0, start - max(map(_indentation, same))) : start]
        text = max((r.chunk.text for r in same), key=lambda text: _standing(before, text, body))
        alike = tuple(record for record in same if record.chunk.text == text)
        return [FoundText(start, start + length, alike, length == len(body))]


def _body(record: ChunkRecord) -> str:
    """A chunk's text behind its first line's indentation."""
    return record.chunk.text.lstrip()


def _indentation(record: ChunkRecord) -> int:
    """Characters before a chunk's body."""
    return len(record.chunk.text) - len(_body(record))


def _standing(before: str, text: str, body: str) -> int:
    """How much of a text's indentation stands before its body; below 0 where not all of it does."""
    indentation = text.removesuffix(body)
    return len(indentation) if before.endswith(indentation) else -len(indentation)


def _occurrences(prompt: str, text: str) -> Iterator[int]:
    """Where the text stands in the prompt, without overlap."""
    start = prompt.find(text)
    while start >= 0:
        yield start
        start = prompt.find(text, start + len(text))


def _common(prompt: str, start: int, text: str) -> int:
    """How many of the text's first characters stand in the prompt at `start`."""
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


def resolve(found: Sequence[FoundText], handles: Sequence[KVHandle]) -> list[TextMatch]:
    """Decide which chunk each found text is, where several have the same text.

    The i-th occurrence of a text is the i-th handle that names one of its chunks; else the only
    chunk there is; else the chunk whose document's previous chunk was found before it, if it is
    certain which that is. Failing all that, and where the prompt cuts the text short, so that
    others may begin alike, it is any of them, isolated: isolated KV is the same for all.
    """
    records = {record.chunk.id: record for text in found for record in text.records}
    waiting: dict[str, list[ChunkRecord]] = defaultdict(list)
    for handle in handles:
        if record := records.get(handle.chunk_id):
            waiting[record.chunk.text].append(record)
    matches: list[TextMatch] = []
    certain = False  # whether it is known which chunk the last one is
    for text in found:
        candidates = text.records
        named = waiting[candidates[0].chunk.text]
        previous = matches[-1].record if matches else None
        if not text.complete:
            record, certain = candidates[0], False
        elif named:
            record, certain = named.pop(0), True
        elif len(candidates) == 1:
            record, certain = candidates[0], True
        elif certain and (followers := [c for c in candidates if _follows(c, previous)]):
            record = followers[0]
        else:
            record, certain = candidates[0], False
        variant: KVKind = "fused" if certain else "isolated"
        start = text.start - _indentation(record)
        matches.append(TextMatch(record, start, text.stop, variant))
    return matches


def _follows(record: ChunkRecord, previous: ChunkRecord | None) -> bool:
    return (
        previous is not None
        and previous.chunk.document == record.chunk.document
        and previous.chunk.index + 1 == record.chunk.index
    )
