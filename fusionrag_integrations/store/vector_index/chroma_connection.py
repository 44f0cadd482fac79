"""The port by which `CollectionIndex` reaches a collection, and what connections share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from fusionrag_integrations.errors import InvalidInputError, StoreMismatchError
from fusionrag_integrations.store.vector_index.entries import OwnEntries

# Chroma's graph is approximate; this width finds the true neighbours among thousands of chunks.
HNSW = {"space": "cosine", "ef_construction": 200, "ef_search": 200, "max_neighbors": 32}


@dataclass(frozen=True, slots=True)
class Limits:
    """How many entries a call may write, and an answer may have."""

    written: int
    answered: int = 1 << 30  # the most that Chroma can be asked for


class ChromaConnection(Protocol):
    """A collection in files, on a server or in memory.

    Everything but `close` raises `StoreError` where it can't be used, and `StoreClosedError` once
    this is closed.
    """

    def reading(self) -> AbstractContextManager[tuple[Any, OwnEntries]]:
        """The collection, to read from, and which of its entries are the store's."""
        ...

    def writing(self, nbytes: int = 0) -> AbstractContextManager[tuple[Any, OwnEntries]]:
        """The same, to write nbytes of texts and vectors."""
        ...

    def limits(self) -> Limits:
        """What Chroma accepts at once."""
        ...

    def mismatch(self, reason: object) -> StoreMismatchError:
        """The error for a vector of another length than the others."""
        ...

    def refresh(self) -> None:
        """See `VectorIndex.refresh`."""

    def close(self) -> None:
        """Release what was opened here. May be called again."""


@contextmanager
def named_arguments(connection: ChromaConnection) -> Iterator[None]:
    """What Chroma refuses, as errors of this package."""
    try:
        yield
    except Exception as error:
        # Imported where it is needed: an index may be closed while Python ends.
        from chromadb.errors import InvalidArgumentError

        if not isinstance(error, InvalidArgumentError):
            raise
        if "dimension" in str(error):
            raise connection.mismatch(error) from error
        what = "A filter" if "where" in str(error) else "An embedding"
        raise InvalidInputError(f"{what} can't be used: {error}.") from error
