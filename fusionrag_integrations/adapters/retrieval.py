"""What the retrievers of both frameworks share: the store they search, and its opening."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from warnings import warn

from fusionrag_integrations.adapters.base import ChunkSource, Store
from fusionrag_integrations.adapters.store_source import StoreSource
from fusionrag_integrations.support.threads import Closable

if TYPE_CHECKING:
    from fusionrag_integrations.store.vector_index.base import GivenIndex


class StoreRetriever(Closable):
    """A retriever that may open a store or connections of its own, and closes them."""

    _source: ChunkSource  # set by the constructor

    @classmethod
    def from_store(
        cls,
        path: str | Path,
        *,
        embedding: object | None = None,
        index: GivenIndex | None = None,
        **arguments: Any,
    ) -> Self:
        """A retriever over the store at `path`, which needs no model.

        embedding: the one that the store was created with. index: where that was given, too.
        Raises as `Store.open` does. The retriever is a context manager that closes the store at its
        end; so does `close`.
        """
        from fusionrag_integrations.store.store import Store

        with ExitStack() as opened:
            store = opened.enter_context(Store.open(path, embedding, index=index))
            retriever = cls(store=store, **arguments)  # type: ignore[call-arg]
            retriever._source = StoreSource(store, opened=opened.pop_all())
        return retriever

    def close(self) -> None:
        """Close the store that `from_store` opened, and connections to a server.

        An engine or store that was given stays open. Searches raise `StoreClosedError` afterwards.
        """
        self._source.close()


def renamed_corpus(store: Store | None, corpus: Store | None, stacklevel: int) -> Store | None:
    """The argument `store`, which may still be given as `corpus`: that name warns."""
    if corpus is not None:
        warn("corpus is called store now.", DeprecationWarning, stacklevel)
    return corpus if store is None else store
