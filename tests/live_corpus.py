"""For the test of a living corpus: known texts, a tiny model, watched engines over a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.documents.embedding import LexicalEmbedder, probe
from fusionrag_integrations.documents.keys import isolated_key
from fusionrag_integrations.errors import KVMissingError
from fusionrag_integrations.execution.chunk_kv import (
    Fusion,
    fuse_chunks,
    prefill_chunks,
    prefill_prefix,
)
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.prompt import SEPARATOR, ingest_prefix, ingest_surroundings
from fusionrag_integrations.store.corrections import Correction
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.record_format import FORMAT_VERSION
from fusionrag_integrations.store.kv.types import ChunkKV, LayeredKV
from fusionrag_integrations.store.vector_index.base import VectorIndex
from tests.tiny_models import COMMON, heads
from tests.tiny_tokenizers import byte_level_tokenizer

# Each is long enough (64 characters, 16 tokens) to be reused without a handle, and no two fit into
# one chunk. Some share their first characters, by which chunks are looked up.
TEXTS = (
    "Harbour masters counted seventeen copper lanterns beside weathered boats.",
    "Harbour masters counted seventeen iron anchors beneath northern lighthouses.",
    "Travellers remember blue markets where silver merchants traded honeycomb.",
    "Travellers remember blue markets beyond crumbling aqueducts, near vineyards.",
    "Mountain villages celebrate midsummer together with drums and bonfires.",
    "Several carpenters repaired wooden bridges after terrible autumn floods.",
)
CHUNK_TOKENS = 16
SCOPES = ("", "secret")


@cache
def model() -> CausalModel:
    """Two layers: the first one's KV doesn't depend on what stands before a chunk."""
    tokenizer = byte_level_tokenizer(chat=True, training=TEXTS * 5, vocabulary=420)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    config = COMMON | sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    return CausalModel(LlamaForCausalLM(LlamaConfig(**config, **heads(2, 1))), tokenizer, "tiny")


@cache
def prefix() -> str:
    return ingest_prefix(model().tokenizer)


@cache
def store_info() -> StoreInfo:
    return StoreInfo(
        format_version=FORMAT_VERSION,
        signature=model().signature(ingest_surroundings(model().tokenizer)),
        model_source=model().source,
        embedding=LexicalEmbedder.name,
        chunk_tokens=CHUNK_TOKENS,
        kv_format="float32",
        probes=probe(LexicalEmbedder()),
    )


@cache
def tokens(text: str) -> tuple[int, ...]:
    return tuple(model().tokenizer(text, add_special_tokens=False).input_ids)


@cache
def vector(text: str) -> list[float]:
    return LexicalEmbedder().embed_query(text)


@cache
def key_of(number: int, scope: str) -> str:
    """The isolated key of a text in a scope."""
    return isolated_key(tokens(TEXTS[number]), store_info().record_signature, scope)


@cache
def origins() -> dict[str, tuple[int, str]]:
    """Isolated key -> text and scope."""
    return {key_of(n, scope): (n, scope) for n in range(len(TEXTS)) for scope in SCOPES}


@lru_cache(4096)
def computed(number: int, neighbours: tuple[int, ...] = ()) -> ChunkKV:
    """KV of a text behind others, made here rather than read."""
    start = prefill_prefix(Executor(model()), tokens(prefix()))
    if not neighbours:
        return prefill_chunks(Executor(model()), start, {"": tokens(TEXTS[number])})[0]
    before = tuple(computed(neighbour) for neighbour in neighbours)
    fusion = Fusion("", computed(number), before)
    ((fused, _),) = fuse_chunks(Executor(model()), start, [fusion], tokens(SEPARATOR))
    return fused


@dataclass(frozen=True)
class Moment:
    """Just before or after the `call`-th call (from 0) of a method, as "catalog.kv.set_fused"."""

    place: str
    call: int
    after: bool


class WatchedEngine:
    """An engine with its parts. `served` and `missed` are what was read from the store."""

    def __init__(self, engine: FusionEngine) -> None:
        self.engine, self.store, self.kv = engine, engine.store, engine.kv
        self.catalog, self.index = self.store.catalog, self.store.index
        self.served: list[LayeredKV] = []
        self.missed: list[str] = []
        self._acquire = self.kv.acquire
        self.kv.acquire = self._watched  # type: ignore[method-assign]

    @classmethod
    def open(cls, path: Path, index: VectorIndex | None = None) -> WatchedEngine:
        """index: in the place of Chroma's."""
        return cls(FusionEngine.open(model(), path, chunk_tokens=CHUNK_TOKENS, index=index))

    def progress(self, stage: str, done: int, total: int) -> None:
        """Hears how an ingest goes on, and does nothing."""

    @contextmanager
    def acting(self, moment: Moment | None, action: Callable[[], None]) -> Iterator[None]:
        """Do `action` at the moment, if it comes. The engine's own methods are "engine.…"."""
        if moment is None:
            yield
            return
        part, _, method = moment.place.rpartition(".")
        target = self if part == "engine" else attrgetter(part)(self)
        real, calls = getattr(target, method), count()

        def with_action(*args: Any, **kwargs: Any) -> Any:
            now = next(calls) == moment.call
            if now and not moment.after:
                action()
            result = real(*args, **kwargs)
            if now and moment.after:
                action()
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target, method, with_action)
            yield

    def _watched(self, key: str, correction: Correction | None = None) -> LayeredKV:
        try:
            self.served.append(self._acquire(key, correction))
        except KVMissingError:
            self.missed.append(key)
            raise
        return self.served[-1]
