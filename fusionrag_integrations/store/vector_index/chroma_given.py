"""Collections of a client of chromadb's, or of one collection, that a caller gave and closes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fusionrag_integrations.errors import (
    InvalidInputError,
    StoreClosedError,
    StoreError,
    StoreMismatchError,
)
from fusionrag_integrations.store.vector_index.chroma_connection import (
    HNSW,
    Limits,
    named_arguments,
)
from fusionrag_integrations.store.vector_index.chroma_process import ThreadPool
from fusionrag_integrations.store.vector_index.entries import SPACES, OwnEntries
from fusionrag_integrations.store.vector_index.vectors import embedding_mismatch

if TYPE_CHECKING:
    import httpx

_CLOUD = "trychroma.com"
_QUOTA = 300  # entries that Chroma Cloud takes or gives at once, where its own limit says more
_UNLIMITED = 5_000  # entries to write at once where a server tells no limit


class GivenCollection:
    """A `ChromaConnection` to a collection that many threads, processes and programs may use.

    The client is used as it is, and never closed here. It is asked for the collection at first use.
    """

    def __init__(
        self, store: Path, name: str, get: Callable[[], Any], api: Any, store_id: str
    ) -> None:
        """name: the collection's. get: asks for it. api: chromadb's, by which it is reached.

        store_id: marks our entries where others may keep theirs in the collection; else "".
        """
        self._store = store
        self._name = name
        self._get = get
        self._api = api
        self._store_id = store_id
        self._held: tuple[Any, OwnEntries] | None = None
        self._closed = False
        self._process = os.getpid()
        settings = api.get_settings()
        self._is_remote = "fastapi" in settings.chroma_api_impl
        self._is_cloud = _CLOUD in str(settings.chroma_server_host)

    @classmethod
    def of_client(cls, client: Any, store: Path, store_id: str) -> Self:
        """A collection of the store's own, which is made where there is none."""
        name = f"fusionrag-{store_id}"

        def get() -> Any:
            return client.get_or_create_collection(
                name, embedding_function=None, configuration={"hnsw": HNSW}
            )

        return cls(store, name, get, client, "")

    @classmethod
    def of_collection(cls, collection: Any, store: Path, store_id: str) -> Self:
        """A collection that others may fill too.

        Raises `InvalidInputError` where its distances can't be understood.
        """
        _entries(collection, store_id)
        # A collection has no public way to its server's limits and settings.
        return cls(store, collection.name, lambda: collection, collection._client, store_id)

    @property
    def place(self) -> str:
        """Where the collection is, for messages."""
        settings = self._api.get_settings()
        where = f"{settings.chroma_server_host}:{settings.chroma_server_http_port}"
        return f"the Chroma collection {self._name!r}" + (f" on {where}" if self._is_remote else "")

    @contextmanager
    def reading(self) -> Iterator[tuple[Any, OwnEntries]]:
        """See `ChromaConnection.reading`."""
        self._check_usable()
        with self._named_errors():
            if (held := self._held) is None:
                collection = self._get()
                held = self._held = collection, _entries(collection, self._store_id)
            yield held

    @contextmanager
    def writing(self, nbytes: int = 0) -> Iterator[tuple[Any, OwnEntries]]:
        """See `ChromaConnection.writing`."""
        with self.reading() as held:
            yield held

    def limits(self) -> Limits:
        """See `ChromaConnection.limits`."""
        if self._is_cloud:
            return Limits(_QUOTA, _QUOTA)
        with self.reading():
            written = int(self._api.get_max_batch_size())
        return Limits(written if written > 0 else _UNLIMITED)

    def mismatch(self, reason: object) -> StoreMismatchError:
        """See `ChromaConnection.mismatch`."""
        if not self._store_id:
            return embedding_mismatch(self._store, reason)
        return StoreMismatchError(
            f"The collection {self._name!r} holds vectors of another length than those of the "
            f"store at {self._store}: {reason}. Use the embedding that fills the collection, or "
            "give the client, on which the store keeps a collection of its own."
        )

    def refresh(self) -> None:
        """Ask for the collection again, since another process may have made it anew."""
        self._check_usable()
        self._held = None

    def close(self) -> None:
        """Refuse further calls. The client stays open."""
        self._closed = True
        self._held = None

    def _check_usable(self) -> None:
        if self._closed:
            raise StoreClosedError.of(self._store)
        if os.getpid() != self._process:
            raise StoreError(
                f"The Chroma client of the store at {self._store} can't be used in this process, "
                "which was forked from the one that has it. Open the store in each process, with a "
                "client that was made there, or start workers by 'spawn'."
            )
        if not self._is_remote:
            ThreadPool.use()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Raise what the client does as this package's errors, naming server or collection."""
        import httpx
        from chromadb.errors import ChromaError, NotFoundError

        try:
            with named_arguments(self):
                yield
        except httpx.TransportError as error:
            raise StoreError(
                f"The Chroma server{_address(error)} can't be reached: {error}. Nothing is lost: "
                "try again once it runs. An ingest that was interrupted goes on with the next one."
            ) from error
        except NotFoundError as error:
            self._held = None
            raise StoreError(
                f"The Chroma collection {self._name!r} is gone: {error}. {self._what_to_do}"
            ) from error
        except Exception as error:
            # Closed clients raise RuntimeError or AttributeError. A bare Exception is what a proxy
            # answered that stands before the server.
            known = (
                *(ChromaError, httpx.HTTPError, JSONDecodeError),
                *(OSError, RuntimeError, AttributeError),
            )
            if not isinstance(error, known) and type(error) is not Exception:
                raise
            raise StoreError(
                f"The Chroma collection {self._name!r} can't be used: {error}. Look at its server "
                "and client; a client must stay open as long as the store."
            ) from error

    @property
    def _what_to_do(self) -> str:
        if self._store_id:
            return "Get or make it by its client, and open the store with that."
        return "The next search or ingest makes it again, and fills it from the catalog."


def _entries(collection: Any, store_id: str) -> OwnEntries:
    """The store's entries in a collection. Raises `InvalidInputError` for an unknown space."""
    # As JSON, since reading it as objects makes the collection's embedding function.
    stored = collection.configuration_json
    space = (stored.get("hnsw") or stored.get("spann") or {}).get("space", "l2")
    if space not in SPACES:
        raise InvalidInputError(
            f"The collection {collection.name!r} compares vectors by {space!r}; give one whose "
            f"space is {', '.join(SPACES)}, or the client, on which the store keeps its own."
        )
    return OwnEntries(store_id, space)


def _address(error: httpx.TransportError) -> str:
    try:
        url = error.request.url
    except RuntimeError:  # it was raised without one
        return ""
    return f" at {url.scheme}://{url.netloc.decode()}"
