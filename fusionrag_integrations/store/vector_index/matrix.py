"""Vectors of chunks as one matrix, of which a search compares all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_ROUNDING = 1e-5  # the most by which equal scores differ in a matrix product
_BATCH = 64  # chunks whose neighbours are computed together


@dataclass(frozen=True)
class VectorMatrix:
    """matrix: float32 [chunks, dimensions], rows of length 1. ids: the chunks' ids, by row.

    scopes: int [chunks], the number of each chunk's scope. numbers: these numbers by scope.
    """

    ids: tuple[str, ...]
    scopes: np.ndarray
    numbers: Mapping[str, int]
    matrix: np.ndarray

    @cached_property
    def rows(self) -> dict[str, int]:
        """Each chunk's row."""
        return {chunk_id: row for row, chunk_id in enumerate(self.ids)}

    def rows_of(self, scopes: Sequence[str] | None, among: set[str] | None) -> np.ndarray:
        """The rows of these scopes and among these chunk ids, ascending; None for all."""
        kept = np.ones(len(self.ids), bool)
        if scopes is not None:
            wanted = [self.numbers[scope] for scope in scopes if scope in self.numbers]
            kept &= np.isin(self.scopes, wanted)
        if among is not None:
            kept &= np.array([chunk_id in among for chunk_id in self.ids], bool)
        return np.flatnonzero(kept)

    def nearest(self, vector: np.ndarray, k: int, rows: np.ndarray) -> list[tuple[str, float]]:
        """The ids of the `k` nearest of these rows with their scores, best first, ties by id.

        vector: float32 [dimensions], of length 1.
        """
        return self._best(vector, (self.matrix @ vector)[rows], k, rows) if self.ids else []

    def neighbours(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        """For each chunk the `k` nearest others of its scope, nearest first."""
        found: dict[str, list[str]] = {}
        asked = np.array([self.rows[chunk_id] for chunk_id in dict.fromkeys(chunk_ids)], int)
        for scope in np.unique(self.scopes[asked]):
            rows = np.flatnonzero(self.scopes == scope)
            others = self.matrix[rows].T
            of_scope = asked[self.scopes[asked] == scope]
            for start in range(0, len(of_scope), _BATCH):
                batch = of_scope[start : start + _BATCH]
                for row, scores in zip(batch, self.matrix[batch] @ others, strict=True):
                    best = self._best(self.matrix[row], scores, k + 1, rows)
                    name = self.ids[row]
                    found[name] = [other for other, _ in best if other != name][:k]
        return found

    def _best(
        self, vector: np.ndarray, scores: np.ndarray, k: int, rows: np.ndarray
    ) -> list[tuple[str, float]]:
        """The `k` best rows. scores: approximate; computed again for the best, the same way for
        each, so that equal vectors get equal scores.
        """
        if not (k := min(k, len(rows))):
            return []
        least = np.partition(scores, -k)[-k]
        near = rows[scores >= least - _ROUNDING]
        exact = (self.matrix[near] * vector).sum(axis=1)
        hits = [(self.ids[row], float(score)) for row, score in zip(near, exact, strict=True)]
        return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k]
