"""Known chunk texts in a prompt, found by content: frameworks strip and re-join what we give them.

prompt --fingerprints--> sites --records, compared--> FoundText --resolve--> TextMatch

Only fingerprints of the texts are held in memory, a few numbers a chunk. They say where to look;
what is found there is compared character by character, so texts that share a fingerprint do no
harm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.prompt.fingerprints import Integers, Prints, fingerprints, positions
from fusionrag_integrations.prompt.found import (
    MIN_PREFIX,
    FoundText,
    ReadRecords,
    TextComparison,
    body,
)
from fusionrag_integrations.support.batches import in_batches

ANCHOR = 32  # characters; shorter texts need a handle
MAX_CANDIDATES = 16  # chunks whose records are read for one site, beside the likely ones

_BEGINNINGS = (ANCHOR, MIN_PREFIX)
_BATCH = 200  # texts read and fingerprinted at a time

ReadTexts = Callable[[Sequence[str]], Iterable[tuple[str, str, str]]]
"""From chunk ids to ids, scopes and texts; unknown ids are left out."""
Numbers = Integers
"""Chunks, by their number in the order that they were given in."""


class ChunkMatcher:
    """The known texts, ready to be found in prompts. Immutable.

    A text's key is its first `MIN_PREFIX` characters, or all of a shorter text. Wherever a prompt
    contains a key, it contains a text with this key, whole or cut. Which one, and whether it is
    whole, follows from the fingerprints of the whole texts.
    """

    def __init__(
        self, chunk_ids: Sequence[str], read_texts: ReadTexts, last: ChunkMatcher | None = None
    ) -> None:
        """chunk_ids: the chunks of each document in order.

        last: the matcher that this one replaces. Only texts that it doesn't know are read, since
        the text and scope of a chunk id never change.
        """
        self._ids = list(chunk_ids)
        self._number_of = {chunk_id: number for number, chunk_id in enumerate(self._ids)}
        self._scopes: dict[str, int] = {} if last is None else dict(last._scopes)
        self._hashes = np.zeros((len(self._ids), 3), np.uint64)  # anchor, key, whole text
        self._lengths = np.zeros(len(self._ids), np.int64)  # characters; 0 where it isn't known
        self._scope_of = np.zeros(len(self._ids), np.int64)
        if last is not None:
            self._copy_known(last)
        self._read_missing(read_texts)
        anchors, keys, self._wholes = self._hashes.T
        # Chunks by key; of one key the longest texts first; equal texts together, in order.
        self._order = np.lexsort((self._wholes, -self._lengths, keys))
        self._keys, first = np.unique(keys[self._order], return_index=True)
        self._bounds = [*first.tolist(), len(self._ids)]
        findable = self._lengths >= ANCHOR
        self._anchors = np.unique(anchors[findable])
        key_lengths = np.unique(np.minimum(self._lengths[findable], MIN_PREFIX))
        self._key_lengths: list[int] = key_lengths[::-1].tolist()
        # One lookup in this table rules out most positions of a prompt.
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

        Texts shorter than `ANCHOR` characters are found only if a handle names them. A text that
        the prompt cuts short is found as far as it goes, from `MIN_PREFIX` characters on; where
        more than `MAX_CANDIDATES` texts begin alike, not all are tried for that. scopes: those
        whose chunks may be found; None for all.
        """
        comparison = TextComparison(prompt, read_records)
        allowed = None if scopes is None else [self._scopes.get(scope, -1) for scope in scopes]
        numbers = [self._number_of[h.chunk_id] for h in handles if h.chunk_id in self._number_of]
        named = self._allowed(np.array(numbers, np.int64), allowed)
        texts = [body(record) for record in comparison.records(self._chunk_ids(named))]
        prints = Prints(prompt)
        keys_at = self._keys_at(prints)
        for text in dict.fromkeys(text for text in texts if len(text) < ANCHOR):
            (key,) = positions(self._keys, fingerprints([text], _BEGINNINGS)[:, 1]).tolist()
            for start in _occurrences(prompt, text):
                keys_at[start].append(key)
        sites: list[tuple[int, list[str]]] = []  # start, chunks with the text at that site
        stop, likely = 0, named  # likely: those with a handle, and those that come next
        for start in sorted(keys_at):
            if start < stop:
                continue
            groups = [self._allowed(self._with_key(key), allowed) for key in keys_at[start]]
            copies, length = self._longest_whole(prints, start, groups)
            if not length:
                copies, length = self._longest_cut(comparison, start, groups[0], named)
            few = self._few(copies, likely)
            sites.append((start, self._chunk_ids(few)))
            stop, likely = start + length, np.append(named, few[:MAX_CANDIDATES] + 1)
        comparison.records([chunk_id for _, chunk_ids in sites for chunk_id in chunk_ids])
        found: list[FoundText] = []
        for start, chunk_ids in sites:
            if not found or start >= found[-1].stop:
                found += comparison.found(start, chunk_ids)
        return found

    def _copy_known(self, last: ChunkMatcher) -> None:
        numbers = np.array([last._number_of.get(i, -1) for i in self._ids], np.int64)
        known = numbers >= 0
        self._hashes[known] = last._hashes[numbers[known]]
        self._lengths[known] = last._lengths[numbers[known]]
        self._scope_of[known] = last._scope_of[numbers[known]]

    def _read_missing(self, read_texts: ReadTexts) -> None:
        missing = self._chunk_ids(np.flatnonzero(self._lengths == 0))
        for batch in in_batches(missing, _BATCH):
            read = list(read_texts(batch))
            numbers = [self._number_of[chunk_id] for chunk_id, _, _ in read]
            bodies = [text.lstrip() for _, _, text in read]
            self._hashes[numbers] = fingerprints(bodies, _BEGINNINGS)
            self._lengths[numbers] = [len(text) for text in bodies]
            self._scope_of[numbers] = [
                self._scopes.setdefault(scope, len(self._scopes)) for _, scope, _ in read
            ]

    def _keys_at(self, prints: Prints) -> defaultdict[int, list[int]]:
        """The keys that a prompt contains, by start and then by number: the longest first."""
        anchors = prints.everywhere(ANCHOR)
        starts = np.flatnonzero(self._maybe[anchors >> self._shift])
        starts = starts[positions(self._anchors, anchors[starts]) >= 0]
        keys_at: defaultdict[int, list[int]] = defaultdict(list)
        for length in self._key_lengths:
            fitting = starts[starts + length <= prints.length]
            keys = positions(self._keys, prints.of(fitting, length))
            for start, key in zip(fitting.tolist(), keys.tolist(), strict=True):
                if key >= 0:
                    keys_at[start].append(key)
        return keys_at

    def _longest_whole(
        self, prints: Prints, start: int, groups: Sequence[Numbers]
    ) -> tuple[Numbers, int]:
        """The chunks with the longest text that is whole at `start`, and its length, or 0."""
        for numbers in groups:
            numbers = numbers[self._lengths[numbers] <= prints.length - start]
            wholes = self._wholes[numbers]
            equal = np.flatnonzero(prints.of(start, self._lengths[numbers]) == wholes)
            if len(equal):
                longest = equal[0]
                return numbers[wholes == wholes[longest]], int(self._lengths[numbers[longest]])
        return groups[0][:0], 0

    def _longest_cut(
        self, comparison: TextComparison, start: int, numbers: Numbers, named: Numbers
    ) -> tuple[Numbers, int]:
        """The chunks with the text that goes furthest from `start` on, and how far, or 0."""
        tried = self._few(numbers, named)
        comparison.records(self._chunk_ids(tried))
        lengths = [comparison.common_length(start, i) for i in self._chunk_ids(tried)]
        length = max(lengths, default=0)
        if not length:
            return numbers[:0], 0
        best = tried[lengths.index(length)]
        return numbers[self._wholes[numbers] == self._wholes[best]], length

    def _few(self, numbers: Numbers, likely: Numbers) -> Numbers:
        """All of few chunks; of many the likely ones, one each of some texts, and the first."""
        if len(numbers) <= MAX_CANDIDATES:
            return numbers
        wholes = self._wholes[numbers]
        distinct = numbers[np.append(True, wholes[1:] != wholes[:-1])]
        chosen = [numbers[np.isin(numbers, likely)], distinct[:MAX_CANDIDATES]]
        chosen.append(numbers[:MAX_CANDIDATES])
        return np.array(list(dict.fromkeys(np.concatenate(chosen).tolist())), np.int64)

    def _with_key(self, key: int) -> Numbers:
        return self._order[self._bounds[key] : self._bounds[key + 1]]

    def _chunk_ids(self, numbers: Numbers) -> list[str]:
        return [self._ids[number] for number in numbers.tolist()]

    def _allowed(self, numbers: Numbers, scopes: Sequence[int] | None) -> Numbers:
        return numbers if scopes is None else numbers[np.isin(self._scope_of[numbers], scopes)]


def _occurrences(prompt: str, text: str) -> Iterator[int]:
    """Where the prompt contains the text, without overlap."""
    start = prompt.find(text)
    while start >= 0:
        yield start
        start = prompt.find(text, start + len(text))
