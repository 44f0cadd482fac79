"""Exact KV of the starts of prompts, shared by all that begin with the same tokens.

A radix tree: an edge has tokens and their KV, and a path from the root is a prompt's beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from fusionrag_integrations.execution.known_start import KVPiece
from fusionrag_integrations.prompt.assemble import equal_at_start

Read = Callable[[range], tuple[torch.Tensor, torch.Tensor]]
"""A copy of the keys and values [L, Hkv, T, D] at these positions."""


@dataclass(slots=True, eq=False)
class _Node:
    """An edge and what follows it. used: when, by the tree's clock."""

    token_ids: tuple[int, ...]
    keys: torch.Tensor
    values: torch.Tensor
    used: int
    children: dict[int, _Node] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def split(self, at: int) -> None:
        """Make two edges of one, each with memory of its own."""
        rest = _Node(
            self.token_ids[at:],
            self.keys[:, :, at:].clone(),
            self.values[:, :, at:].clone(),
            self.used,
            self.children,
        )
        self.token_ids = self.token_ids[:at]
        self.keys, self.values = self.keys[:, :, :at].clone(), self.values[:, :, :at].clone()
        self.children = {rest.token_ids[0]: rest}


class PrefixTree:
    """Beginnings of prompts within a budget of bytes. Not thread-safe.

    Roots are apart: what one of them has isn't found under another. What was used least recently is
    evicted first, from the ends of paths.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._clock = 0
        self._roots: dict[object, dict[int, _Node]] = {}

    def find(self, root: object, token_ids: Sequence[int]) -> list[KVPiece]:
        """The KV of the longest beginning that is known."""
        self._clock += 1
        pieces = []
        for node, matched in self._path(root, token_ids):
            node.used = self._clock
            pieces.append(KVPiece(node.keys, node.values, matched))
        return pieces

    @torch.inference_mode()
    def add(self, root: object, token_ids: Sequence[int], read: Read) -> None:
        """Keep the KV of a beginning; only what isn't known is read."""
        self._clock += 1
        children, start = self._roots.setdefault(root, {}), 0
        for node, matched in self._path(root, token_ids):
            if matched < len(node.token_ids):
                node.split(matched)
            node.used = self._clock
            children, start = node.children, start + matched
        if start < len(token_ids):
            keys, values = read(range(start, len(token_ids)))
            node = _Node(tuple(token_ids[start:]), keys, values, self._clock)
            if self._make_room(node.nbytes):
                children[token_ids[start]] = node
                self.used += node.nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._roots.clear()
        self.used = 0

    def _path(self, root: object, token_ids: Sequence[int]) -> list[tuple[_Node, int]]:
        """The edges along these tokens, and how many of each one's are the same."""
        path: list[tuple[_Node, int]] = []
        children, start = self._roots.get(root, {}), 0
        while start < len(token_ids) and (node := children.get(token_ids[start])):
            matched = equal_at_start(node.token_ids, token_ids[start : start + len(node.token_ids)])
            path.append((node, matched))
            if matched < len(node.token_ids):
                break
            children, start = node.children, start + matched
        return path

    def _make_room(self, nbytes: int) -> bool:
        """Evict what hasn't been used just now until so many bytes fit; returns whether they do."""
        while self.used + nbytes > self.budget:
            ends = [
                (node.used, siblings, node)
                for children in self._roots.values()
                for siblings, node in _ends(children)
                if node.used < self._clock
            ]
            if not ends:
                return False
            _, siblings, oldest = min(ends, key=lambda end: end[0])
            del siblings[oldest.token_ids[0]]
            self.used -= oldest.nbytes
        return True


def _ends(children: dict[int, _Node]) -> Iterator[tuple[dict[int, _Node], _Node]]:
    """The edges that none follows, and among which they are."""
    waiting = [children]
    while waiting:
        siblings = waiting.pop()
        for node in siblings.values():
            if node.children:
                waiting.append(node.children)
            else:
                yield siblings, node
