"""Opens the store of one model, checking that it was made as wanted, or creates it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from fusionrag_integrations.errors import InvalidInputError, StoreMismatchError, StoreNotFoundError
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.base import KVFiles
from fusionrag_integrations.store.kv.types import KeptKV, KVFormat
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.store.stored_info import stored_info
from fusionrag_integrations.store.vector_index.base import GivenIndex


def kept_kv(path: str | Path, asked: KeptKV | None) -> KeptKV:
    """What the store at a place keeps; where there is none, what was asked for, by default KV.

    Raises `StoreMismatchError` for a store that keeps something else, and as `Store.open` does.
    """
    try:
        kept = stored_info(path).kv
    except StoreNotFoundError:
        return asked or "fused"
    if asked not in (None, kept):
        what, instead = (
            ("without KV (kv='none')", "To answer by full attention, leave kv out.")
            if kept == "none"
            else (
                "with KV",
                "To answer by full attention over it, leave kv out and ask with "
                "AnswerSettings(kv='none').",
            )
        )
        raise StoreMismatchError(
            f"The store at {path} was made {what}, and kv is {asked!r}. {instead} For kv={asked!r} "
            "index the documents into a new store."
        )
    return kept


def no_kv(path: Path) -> InvalidInputError:
    """The error where something needs the KV of a store that keeps none."""
    return InvalidInputError(
        f"The store at {path} keeps no KV (kv='none'): its answers are the model's own full "
        "attention, so there is nothing to check, calibrate or measure."
    )


def open_or_create(
    path: str | Path,
    wanted: StoreInfo,
    embedding: object | None,
    chunk_tokens: int | None,
    kv_format: KVFormat | None,
    index: GivenIndex | None,
    kv_files: KVFiles | None,
    before: Callable[[], None],
) -> Store:
    """Open the store at `path`, or create it as `wanted`. before: called before it is created.

    chunk_tokens, kv_format: what the user asked for; None accepts those of an existing store.
    Raises `StoreMismatchError` for a store of another model, salt or format, `InvalidInputError`
    for one with other chunk_tokens or kv_format, and as `Store.open` does.
    """
    with suppress(StoreNotFoundError), ExitStack() as opened:
        store = Store.open(path, embedding, index=index, kv_files=kv_files)
        opened.enter_context(store)
        _check_same(path, store.catalog.info, wanted, chunk_tokens, kv_format)
        opened.pop_all()
        return store
    before()
    return Store.create(path, wanted, embedding, index=index, kv_files=kv_files)


def _check_same(
    path: Path | str,
    info: StoreInfo,
    wanted: StoreInfo,
    chunk_tokens: int | None,
    kv_format: KVFormat | None,
) -> None:
    if info.format_version != wanted.format_version:
        raise StoreMismatchError(
            f"The store at {path} has format {info.format_version}; this version reads format "
            f"{wanted.format_version}. Index the documents into a new store."
        )
    if info.signature != wanted.signature:
        parts = info.model_differs_in(wanted) or "weights, dtype, tokenizer or configuration"
        raise StoreMismatchError(
            f"The store at {path} was made by {info.model_source} (signature {info.signature}), "
            f"not by {wanted.model_source} (signature {wanted.signature}). What differs: {parts}. "
            "Load that model, or make the store anew for this one by fusionrag reindex."
        )
    if chunk_tokens is not None and chunk_tokens != info.chunk_tokens:
        raise InvalidInputError(
            f"The store at {path} has chunks of up to {info.chunk_tokens} tokens; "
            f"chunk_tokens={chunk_tokens} needs a new store."
        )
    if kv_format is not None and kv_format != info.kv_format:
        raise InvalidInputError(
            f"The store at {path} keeps KV as {info.kv_format}, not {kv_format!r}; "
            "fusionrag reindex makes it anew with another kv_format."
        )
    if wanted.salt_id != info.salt_id:
        raise StoreMismatchError(
            f"The store at {path} was made with {'another' if info.salt_id else 'no'} salt. "
            "Open it with its own, or make a new store."
        )
