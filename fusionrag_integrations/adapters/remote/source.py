"""RemoteSource: what retrievers need of a store, asked of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from fusionrag_integrations.adapters.base import EmbeddedHits
from fusionrag_integrations.adapters.remote.connection import Connection
from fusionrag_integrations.documents.handles import KVHandle, SearchHit
from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.support.threads import Closable

RETRIEVE = "/v1/retrieve"
Given = ParamSpec("Given")
Result = TypeVar("Result")


class RemoteSource(Closable):
    """The chunks of the store that the server at `base_url` has."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        """As in `Connection`."""
        self._connection = Connection(base_url, api_key)

    def close(self) -> None:
        """Close the connections. May be called again."""
        self._connection.close()

    def search(
        self,
        question: str,
        k: int,
        *,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[SearchHit]:
        """The `k` chunks nearest to a question, by document; the server loads their KV."""
        found = self._ask(scopes, query=question, k=k, where=where)
        return [_hit(row) for row in found["data"]]

    def search_embedded(
        self,
        question: str,
        k: int,
        *,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> EmbeddedHits:
        """The same with vectors."""
        found = self._ask(scopes, query=question, k=k, where=where, embeddings=True)
        vectors = {row["id"]: row["embedding"] for row in found["data"]}
        hits = [_hit(row) for row in found["data"]]
        return EmbeddedHits(hits, found["query_embedding"], vectors)

    def handles_of(
        self, passages: Sequence[tuple[str, str]], scopes: Sequence[str] | None
    ) -> list[KVHandle | None]:
        """A handle for each text that is known; the server registers the others."""
        if not passages:
            return []
        texts = [{"text": text, "source": source} for text, source in passages]
        rows = self._ask(scopes, texts=texts)["data"]
        return [None if row["handle"] is None else KVHandle(**row["handle"]) for row in rows]

    def expect_prompt(
        self, handles: Iterable[KVHandle], unknown: Iterable[str], scopes: Sequence[str] | None
    ) -> None:
        """Nothing: the server expects a prompt of whatever it was asked for."""

    async def run(
        self, call: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Await a call in a thread of the event loop's."""
        return await asyncio.to_thread(call, *args, **kwargs)

    def _ask(self, scopes: Sequence[str] | None, **body: Any) -> dict[str, Any]:
        given = {name: value for name, value in body.items() if value is not None}
        if scopes is not None:
            given["scopes"] = list(scopes)
        found: dict[str, Any] = self._connection.ask("POST", RETRIEVE, given)
        return found


def _hit(row: Mapping[str, Any]) -> SearchHit:
    chunk = Chunk(
        id=row["id"],
        document_id=row["document_id"],
        index=row["index"],
        text=row["text"],
        title=row["title"],
        scope=row["scope"],
        metadata=row["metadata"],
    )
    return SearchHit(chunk, row["score"], KVHandle(**row["handle"]))
