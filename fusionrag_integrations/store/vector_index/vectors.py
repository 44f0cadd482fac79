"""Unit vectors, and checks that all indexes share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fusionrag_integrations.errors import InvalidInputError, StoreMismatchError


def unit_rows(vectors: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Vectors as rows of length 1, float32 [vectors, dimensions]; zeros stay zeros."""
    # In float64: squares of very small and large numbers are beyond float32.
    rows = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths, lengths, 1.0)).astype(np.float32)


def check_k(k: int) -> None:
    """Raises `InvalidInputError` where `k` chunks can't be asked for."""
    if k < 1:
        raise InvalidInputError(f"k is {k}; it must be at least 1.")


def embedding_mismatch(store: Path, reason: object) -> StoreMismatchError:
    """The error for a vector whose length isn't that of the store's."""
    return StoreMismatchError(
        f"The store at {store} was made by another embedding: {reason}. Use the embedding that it "
        "was made with, or make a new store."
    )
