"""Whether a component asks an engine in this process, a store, or a server."""

from __future__ import annotations

from typing import NoReturn

from fusionrag_integrations.adapters.base import ChunkSource, Engine, FusionEngine, Store
from fusionrag_integrations.adapters.store_source import StoreSource
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.inputs import checked_value

# What holds a model or a store, and what asks a server, is imported where it is meant: whoever
# does one of these needn't load what the others need.


def chosen_engine(
    owner: str, engine: FusionEngine | None, base_url: str | None, api_key: str | None
) -> Engine:
    """The engine, or that of a server. Raises `InvalidInputError` unless one of them is given."""
    if (engine is None) == (base_url is None):
        _refuse(f"{owner} needs an engine or a server's base_url, and not both", owner)
    if base_url is not None:
        from fusionrag_integrations.adapters.remote import RemoteEngine

        return RemoteEngine(base_url, api_key)
    _check_no_key(api_key)
    return checked_engine(engine)


def chosen_source(
    engine: FusionEngine | None, store: Store | None, base_url: str | None, api_key: str | None
) -> ChunkSource:
    """Where a retriever searches. Raises `InvalidInputError` unless one of them is given."""
    if [engine, store, base_url].count(None) != 2:
        _refuse(
            "A FusionKVRetriever needs either an engine, a store or a server's base_url",
            "FusionKVRetriever",
            ", or FusionKVRetriever.from_store(path) to retrieve without loading a model",
        )
    if base_url is not None:
        from fusionrag_integrations.adapters.remote import RemoteSource

        return RemoteSource(base_url, api_key)
    _check_no_key(api_key)
    if engine is not None:
        engine = checked_engine(engine)
        return StoreSource(engine.store, engine)
    from fusionrag_integrations.store.store import Store

    return StoreSource(checked_value("store", store, Store))


def checked_engine(engine: object) -> FusionEngine:
    """The engine. Raises `InvalidInputError` for anything else."""
    from fusionrag_integrations.engine import FusionEngine

    given: FusionEngine = checked_value("engine", engine, FusionEngine)
    return given


def _check_no_key(api_key: str | None) -> None:
    if api_key is not None:
        raise InvalidInputError("An api_key is for a server; give it together with base_url.")


def _refuse(reason: str, owner: str, more: str = "") -> NoReturn:
    raise InvalidInputError(
        f"{reason}: {owner}(engine=engine), or {owner}(base_url='http://localhost:8000'){more}."
    )
