"""StoreSource: a retriever's chunks, from a store of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ParamSpec, Self, TypeVar

from fusionrag_integrations.adapters.base import EmbeddedHits, FusionEngine, Store
from fusionrag_integrations.documents.handles import KVHandle, SearchHit

Given = ParamSpec("Given")
Result = TypeVar("Result")


class StoreSource:
    """The chunks of a store, and the engine over it that answers prompts of them, if there is one.

    See `base.ChunkSource`.
    """

    def __init__(
        self, store: Store, engine: FusionEngine | None = None, opened: ExitStack | None = None
    ) -> None:
        """opened: what `close` closes."""
        self._store = store
        self._engine = engine
        self._opened = opened or ExitStack()

    def __deepcopy__(self, memo: object) -> Self:
        """Copies of a retriever share its store."""
        return self

    def close(self) -> None:
        """Close what was opened for this alone; a store or engine that was given stays open."""
        self._opened.close()

    def search(
        self,
        question: str,
        k: int,
        *,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[SearchHit]:
        """The `k` chunks nearest to a question, best first."""
        return self._store.search(question, k, scopes=scopes, where=where)

    def search_embedded(
        self,
        question: str,
        k: int,
        *,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> EmbeddedHits:
        """The same with vectors."""
        vector = self._store.embed_question(question)
        hits = self._store.nearest(vector, k, scopes=scopes, where=where)
        vectors = self._store.embeddings([hit.chunk.id for hit in hits])
        kept = [hit for hit in hits if hit.chunk.id in vectors]  # others were just deleted
        return EmbeddedHits(kept, vector, vectors)

    def handles_of(
        self, passages: Sequence[tuple[str, str]], scopes: Sequence[str] | None
    ) -> list[KVHandle | None]:
        """A handle for each (text, document id) whose text is known."""
        return [self._store.handle_of(text, source, scopes) for text, source in passages]

    def expect_prompt(
        self, handles: Iterable[KVHandle], unknown: Iterable[str], scopes: Sequence[str] | None
    ) -> None:
        """Load the KV of a prompt's chunks, and register its unknown texts, while it is made."""
        if self._engine is not None:
            self._engine.prefetch(handles)
            self._engine.register_texts(unknown, scope=scopes[0] if scopes else "")

    async def run(
        self, call: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Await a call in one of the store's threads."""
        return await self._store.threads.run(call, *args, **kwargs)
