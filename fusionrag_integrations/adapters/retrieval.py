"""What the retrievers of both frameworks share: the store they search, and its opening."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from warnings import warn

from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.support.threads import Closable


class StoreRetriever(Closable):
    """A retriever that may open a store of its own, and closes it. Takes it as `store`."""

    _opened: ExitStack  # what `from_store` opened; set by the constructor

    @classmethod
    def from_store(
        cls, path: str | Path, *, embedding: object | None = None, **arguments: Any
    ) -> Self:
        """A retriever over the store at `path`, which needs no model.

        embedding: the one that the store was created with. Raises as `Store.open` does. The
        retriever is a context manager that closes the store at its end; so does `close`.
        """
        with ExitStack() as opened:
            store = opened.enter_context(Store.open(path, embedding))
            retriever = cls(store=store, **arguments)  # type: ignore[call-arg]
            retriever._opened = opened.pop_all()
        return retriever

    def close(self) -> None:
        """Close the store that `from_store` opened; an engine or store that was given stays open.

        Searches raise `StoreClosedError` afterwards.
        """
        self._opened.close()


def searched_store(engine: FusionEngine | None, store: Store | None) -> Store:
    """The engine's store, or one opened without a model.

    Raises `InvalidInputError` unless exactly one of them is given.
    """
    if engine is not None and store is None:
        return engine.store
    if store is not None and engine is None:
        return store
    raise InvalidInputError(
        "A FusionKVRetriever needs either an engine or a store: FusionKVRetriever(engine=engine), "
        "or FusionKVRetriever.from_store(path) to retrieve without loading a model."
    )


def renamed_corpus(store: Store | None, corpus: Store | None, stacklevel: int) -> Store | None:
    """The argument `store`, which may still be given as `corpus`: that name warns."""
    if corpus is not None:
        warn("corpus is called store now.", DeprecationWarning, stacklevel)
    return corpus if store is None else store


def expect_prompt(
    engine: FusionEngine | None,
    handles: Iterable[KVHandle],
    unknown: Iterable[str],
    scopes: Sequence[str] | None,
) -> None:
    """Load the KV of a prompt's chunks, and register its unknown texts, while it is made."""
    if engine is not None:
        engine.prefetch(handles)
        engine.register_texts(unknown, scope=scopes[0] if scopes else "")
