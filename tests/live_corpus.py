"""For the test of a living corpus: known texts, a tiny model, watched engines over a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.catalog import CATALOG_FILE, Catalog, StoreInfo
from fusionrag_integrations.chunk_kv import Fusion, fuse_chunks, prefill_chunks, prefill_prefix
from fusionrag_integrations.corpus import Corpus, Index
from fusionrag_integrations.embedding import LexicalEmbedder, probe
from fusionrag_integrations.errors import KVMissingError, StoreError
from fusionrag_integrations.keys import isolated_key
from fusionrag_integrations.model import CausalModel
from fusionrag_integrations.prompt import SEPARATOR, ingest_prefix, ingest_surroundings
from fusionrag_integrations.recompute import resident
from fusionrag_integrations.records import FORMAT_VERSION
from fusionrag_integrations.store import Budgets, FileKVStore, TieredKV
from fusionrag_integrations.types import Chunk, ChunkKV, LayeredKV
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
    start = prefill_prefix(model(), tokens(prefix()))
    if not neighbours:
        return prefill_chunks(model(), start, {"": tokens(TEXTS[number])})[0]
    before = tuple(computed(neighbour) for neighbour in neighbours)
    fusion = Fusion("", computed(number), before)
    ((fused, _),) = fuse_chunks(model(), start, [fusion], tokens(SEPARATOR))
    return fused


class MemoryIndex:
    """An `Index` in memory, which outlives the engines as a directory would."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> set[str]:
        return set(self._rows)

    def add(self, chunks: Sequence[Chunk], embeddings: Sequence[Sequence[float]]) -> None:
        for chunk, embedding in zip(chunks, embeddings, strict=True):
            self._rows[chunk.id] = chunk.scope, np.array(embedding, dtype=np.float32)

    def remove(self, chunk_ids: Iterable[str]) -> None:
        for name in chunk_ids:
            self._rows.pop(name, None)

    def search(
        self,
        embedding: Sequence[float],
        k: int,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[tuple[str, float]]:
        assert where is None, "no filters here"
        query = np.array(embedding, dtype=np.float32)
        hits = [
            (name, float(vector @ query))
            for name, (scope, vector) in self._rows.items()
            if scopes is None or scope in scopes
        ]
        return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k]

    def embeddings(self, chunk_ids: Sequence[str]) -> dict[str, list[float]]:
        return {i: self._rows[i][1].tolist() for i in chunk_ids if i in self._rows}

    def refresh(self) -> None:
        """There is nothing that it wouldn't see."""

    def neighbours_many(self, chunk_ids: Sequence[str], k: int) -> dict[str, list[str]]:
        if missing := set(chunk_ids) - self._rows.keys():
            raise StoreError(f"The index doesn't hold {missing}.")
        near: dict[str, list[str]] = {}
        for name in chunk_ids:
            scope, vector = self._rows[name]
            near[name] = [i for i, _ in self.search(vector, k + 1, [scope]) if i != name][:k]
        return near


@dataclass(frozen=True)
class Moment:
    """Just before or after the `call`-th call (from 0) of a method, such as "store.put"."""

    place: str
    call: int
    after: bool


class WatchedEngine:
    """An engine with its parts. `served` and `missed` are what was read from the store."""

    def __init__(self, engine: FusionEngine, store: TieredKV, index: Index) -> None:
        self.engine, self.store, self.index = engine, store, index
        self.corpus, self.catalog = engine.corpus, engine.corpus.catalog
        self.served: list[LayeredKV] = []
        self.missed: list[str] = []
        self._take = store.take
        store.take = self._watched  # type: ignore[method-assign]

    @classmethod
    def open(cls, path: Path, index: Index) -> WatchedEngine:
        """Like `FusionEngine.open`, with this index in the place of Chroma's."""
        file = path / CATALOG_FILE
        catalog = Catalog.open(file) if file.exists() else Catalog.create(file, store_info())
        corpus = Corpus(path, catalog, LexicalEmbedder(), index)
        files = FileKVStore(path / "kv", store_info().record_signature, store_info().kv_format)
        store = TieredKV(files, Budgets(), model().device, partial(resident, model()))
        return cls(FusionEngine(model(), corpus, store, prefix()), store, index)

    @classmethod
    def open_on_chroma(cls, path: Path) -> WatchedEngine:
        engine = FusionEngine.open(model(), path, chunk_tokens=CHUNK_TOKENS)
        return cls(engine, engine._kv, engine.corpus._index)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Hears how an ingest goes on, and does nothing."""

    @contextmanager
    def acting(self, moment: Moment | None, action: Callable[[], None]) -> Iterator[None]:
        """Do `action` at the moment, if it comes. The engine's own methods are "engine.…"."""
        if moment is None:
            yield
            return
        part, method = moment.place.split(".")
        target = self if part == "engine" else getattr(self, part)
        real, calls = getattr(target, method), count()

        def with_action(*args: Any) -> Any:
            now = next(calls) == moment.call
            if now and not moment.after:
                action()
            result = real(*args)
            if now and moment.after:
                action()
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target, method, with_action)
            yield

    def _watched(self, key: str, stored: bool = False) -> LayeredKV:
        try:
            self.served.append(self._take(key, stored))
        except KVMissingError:
            self.missed.append(key)
            raise
        return self.served[-1]
