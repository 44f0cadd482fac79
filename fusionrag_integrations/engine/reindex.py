"""Makes a store anew for another model, dtype or format, from its own texts and vectors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from fusionrag_integrations.engine.engine import FusionEngine
from fusionrag_integrations.engine.parts import DEFAULT_BUDGETS, EngineParts, model_class
from fusionrag_integrations.errors import InvalidInputError, StoreMismatchError, StoreNotFoundError
from fusionrag_integrations.ingest.neighbours import DEFAULT_NEIGHBOURS, NeighbourPolicy
from fusionrag_integrations.ingest.pipeline import IngestReport
from fusionrag_integrations.store.generations import move_to, next_directory
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.kv.types import KVFormat
from fusionrag_integrations.store.locking import holding
from fusionrag_integrations.store.objects.opening import is_url
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.store.stored_info import stored_info
from fusionrag_integrations.support.inputs import checked
from fusionrag_integrations.support.progress import Progress


@checked()
def reindex(
    model_name_or_path: str | Path,
    *,
    store: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    embedding: object | None = None,
    kv_format: KVFormat | None = None,
    salt: str = "",
    budgets: Budgets = DEFAULT_BUDGETS,
    gguf_file: str | None = None,
    neighbours: NeighbourPolicy = DEFAULT_NEIGHBOURS,
    progress: Progress | None = None,
) -> IngestReport:
    """Make the store at `store` one of another model, dtype or `kv_format`.

    Chunks, vectors and documents stay; tokens and KV are computed. Meanwhile whoever has the store
    open is answered from it, also afterwards, until it is opened anew: then the new one is found.
    `collect` deletes what the old one had. May be interrupted and called again: no KV is computed
    twice. The arguments are those of `FusionEngine.from_pretrained` and `FusionEngine.ingest`;
    embedding and salt are the store's own.

    Raises `StoreNotFoundError`, `InvalidInputError` where the store is that model's already, or a
    chunk has more tokens than the model's context, and `StoreBusyError` while it is being changed.
    """
    source = stored_info(store)
    loaded = model_class(store, None).load(model_name_or_path, device, dtype, gguf_file)
    with ExitStack() as opened:
        if not is_url(store):
            old = opened.enter_context(Store.open(store, embedding))
            opened.enter_context(holding(old.path))  # nothing is changed that was copied already
        making = _Making()
        parts = EngineParts.open(
            loaded,
            store,
            embedding=embedding,
            chunk_tokens=source.chunk_tokens,
            kv_format=kv_format,
            salt=salt,
            budgets=budgets,
            index=None,
            kv_files=None,
            opener=making,
        )
        engine = opened.enter_context(FusionEngine(opened.enter_context(parts)))
        if is_url(store):  # after the new one was begun, so that it isn't older than that
            old = opened.enter_context(Store.open(store, embedding))
        report = engine.copy_from(old, neighbours=neighbours, progress=progress)
        if not is_url(store):
            move_to(Path(store), making.name)
    return report


class _Making:
    """Creates the new store; or opens what an interrupted call has made of it."""

    def __init__(self) -> None:
        self.name = ""  # of a new generation

    def __call__(
        self,
        place: str | Path,
        wanted: StoreInfo,
        embedding: object | None,
        chunk_tokens: int | None,
        kv_format: KVFormat | None,
        index: None,
        kv_files: None,
        before: Callable[[], None],
    ) -> Store:
        """See `open_or_create`."""
        source = stored_info(place)
        if source.record_signature == wanted.record_signature and source.kv == wanted.kv:
            raise InvalidInputError(
                f"The store at {place} is already one of {wanted.model_source} in "
                f"{wanted.kv_format}: there is nothing to make anew. Give another model, dtype or "
                "kv_format."
            )
        if source.salt_id != wanted.salt_id:
            raise StoreMismatchError(
                f"The store at {place} was made with {'another' if source.salt_id else 'no'} salt. "
                "Give its own."
            )
        before()
        if is_url(place):
            return Store.create(place, wanted, embedding, publish=False)
        self.name = wanted.record_signature[:16]
        directory = next_directory(Path(place), self.name)
        with suppress(StoreNotFoundError):
            return Store.open(directory, embedding)
        return Store.create(directory, wanted, embedding)
