"""What a caller gave as `index=`, as a `VectorIndex`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.vector_index.base import GivenIndex, VectorIndex
from fusionrag_integrations.store.vector_index.chroma_given import GivenCollection
from fusionrag_integrations.store.vector_index.collection_index import CollectionIndex
from fusionrag_integrations.support.inputs import shown

_METHODS = (
    *("ids", "holds", "add", "remove", "search", "search_many", "matching", "refresh", "close"),
)


@dataclass(frozen=True, slots=True)
class IndexElsewhere:
    """An index outside of its store's directory.

    place: where, for messages. is_ours: whether it was made for the store, which closes it.
    """

    index: VectorIndex
    place: str
    is_ours: bool

    @classmethod
    def of(cls, given: GivenIndex, store: Path, store_id: str) -> IndexElsewhere:
        """given: a `VectorIndex`, or a client of chromadb's or one of its collections.

        Opens no connection. Raises `InvalidInputError` for anything else, and for a collection
        whose distances can't be understood.
        """
        collection = _collection(given, store, store_id)
        if collection is not None:
            return cls(CollectionIndex(collection), collection.place, True)
        missing = [name for name in _METHODS if not callable(getattr(given, name, None))]
        if missing:
            raise InvalidInputError(
                f"index is {shown(given)}, which has no {', '.join(missing)}; give a client of "
                "chromadb (not an asynchronous one), one of its collections, or an object with the "
                "methods of VectorIndex."
            )
        return cls(given, f"a {type(given).__name__}", False)


def _collection(given: GivenIndex, store: Path, store_id: str) -> GivenCollection | None:
    if sys.modules.get("chromadb") is None:  # who has an object of chromadb's has imported it
        return None
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

    if isinstance(given, ClientAPI):
        return GivenCollection.of_client(given, store, store_id)
    if isinstance(given, Collection):
        return GivenCollection.of_collection(given, store, store_id)
    return None
