"""Stop strings, found in a text that comes in pieces (Aho and Corasick, 1975)."""

from __future__ import annotations

from collections.abc import Iterable


class StopMatcher:
    """A trie of the stop strings, walked along a text.

    Its current node is the longest suffix of the text that is a prefix of a stop string. A
    character costs the same however many and long the strings are, since the trie is built level by
    level, no deeper than the text has led.
    """

    def __init__(self, stop: Iterable[str]) -> None:
        """stop: strings that aren't empty."""
        self._children: list[dict[str, int]] = [{}]  # by node; node 0 is the root
        self._fallback = [0]  # by node: that of its longest proper suffix
        self._depth = [0]  # by node: its characters
        self._found = [0]  # by node: length of the longest stop string that is a suffix of it
        self._levels = 0  # of the trie that are built
        self._longer = [(string, 0) for string in stop]  # with the node of each in the last level
        self._node = 0
        self.length = 0
        """Characters of the text up to now."""

    @property
    def certain(self) -> int:
        """How many of them can't belong to a stop string any more."""
        return self.length - self._depth[self._node]

    def feed(self, text: str) -> int | None:
        """Where in the whole text the first stop string begins that ends in this piece."""
        starts: list[int] = []
        for character in text:
            if self._longer and self._depth[self._node] == self._levels:
                self._grow()
            self._node = self._next(self._node, character)
            self.length += 1
            if found := self._found[self._node]:
                starts.append(self.length - found)
        return min(starts, default=None)

    def _next(self, node: int, character: str) -> int:
        while node and character not in self._children[node]:
            node = self._fallback[node]
        return self._children[node].get(character, 0)

    def _grow(self) -> None:
        """Build the next level of the trie."""
        level, self._levels = self._levels, self._levels + 1
        longer = []
        for string, node in self._longer:
            children, character = self._children[node], string[level]
            if character not in children:
                fallback = self._next(self._fallback[node], character) if node else 0
                children[character] = len(self._children)
                self._children.append({})
                self._fallback.append(fallback)
                self._depth.append(self._levels)
                self._found.append(self._found[fallback])
            node = children[character]
            if len(string) == self._levels:
                self._found[node] = self._levels
            else:
                longer.append((string, node))
        self._longer = longer
