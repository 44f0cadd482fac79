"""Which entries of a Chroma collection are a store's, and what its distances say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from fusionrag_integrations.documents.types import Chunk, MetadataValue
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.vector_index.filters import chroma_filter, filterable_metadata

STORE_KEY = "fusionrag_store"  # in the metadata of our entries among others': the store's id

Space = Literal["cosine", "ip", "l2"]
SPACES: tuple[Space, ...] = get_args(Space)


@dataclass(frozen=True, slots=True)
class OwnEntries:
    """store_id: marks the store's entries among others'; "" where all entries are the store's.

    space: how the collection compares vectors, which are all of length 1 or zeros.
    """

    store_id: str = ""
    space: Space = "cosine"

    def names(self, chunk_ids: Iterable[str]) -> list[str]:
        """The ids that chunks have in the collection."""
        return [f"{self._prefix}{chunk_id}" for chunk_id in chunk_ids]

    def chunk_id(self, name: str) -> str | None:
        """The chunk of an entry; None for another's, who may have copied our metadata."""
        return name.removeprefix(self._prefix) if name.startswith(self._prefix) else None

    def metadata(self, chunk: Chunk) -> dict[str, MetadataValue]:
        """What is kept beside a chunk's vector."""
        return {**filterable_metadata(chunk), **self._mark}

    def condition(
        self, scopes: Sequence[str] | None = None, where: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """A filter for the store's entries, as `chroma_filter` makes it; None for all there are."""
        asked = chroma_filter(scopes, where)
        if not self.store_id:
            return asked
        return {"$and": [self._mark, asked]} if asked else {**self._mark}

    def check(self, rows: np.ndarray) -> None:
        """Raises `InvalidInputError` for zeros where distances don't tell their cosine.

        rows: float32 [vectors, dimensions].
        """
        if self.space == "l2" and not rows.any(axis=1).all():
            raise InvalidInputError(
                "An embedding of zeros can't be kept in a collection that compares vectors by l2, "
                "where they would look half similar to all others. Give a collection whose space "
                "is cosine, or the client, on which the store keeps a collection of its own."
            )

    def score(self, distance: float, question_is_zeros: bool) -> float:
        """The cosine similarity by a distance between the question and an entry."""
        if self.space == "l2":  # the square of it, of vectors of length 1
            return 0.0 if question_is_zeros else 1.0 - distance / 2.0
        return 1.0 - distance

    @property
    def _prefix(self) -> str:
        return f"{self.store_id}-" if self.store_id else ""

    @property
    def _mark(self) -> dict[str, MetadataValue]:
        return {STORE_KEY: self.store_id} if self.store_id else {}
