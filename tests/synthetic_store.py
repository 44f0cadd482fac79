"""Stores of any size without a model: invented chunks, their vectors, no KV."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusionrag_integrations.documents.chunk_record import ChunkRecord, EncodedChunk
from fusionrag_integrations.documents.embedding import Embedder
from fusionrag_integrations.documents.keys import isolated_key
from fusionrag_integrations.documents.types import Chunk, DocumentKey
from fusionrag_integrations.errors import StoreError
from fusionrag_integrations.store.changes import Update
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.kv.record_format import FORMAT_VERSION
from fusionrag_integrations.store.layout import INDEX_DIRECTORY
from fusionrag_integrations.store.store import Store
from fusionrag_integrations.store.vector_index.base import GivenIndex
from fusionrag_integrations.store.verify import Problem, find_damage

CHUNKS = 60  # of a document


@dataclass(frozen=True)
class RandomEmbedding:
    """Texts that are numbers, as random vectors; spread: how far apart they lie."""

    dimensions: int = 16
    spread: float | None = None  # None: in all directions

    name = "random"

    def embed_query(self, text: str) -> list[float]:
        seed = sum(text.encode()) if not text.isdigit() else int(text)
        vector = np.random.default_rng(seed).standard_normal(self.dimensions)
        if self.spread is not None:
            vector = np.ones(self.dimensions) + self.spread * vector
        return [float(x) for x in vector.astype(np.float32)]

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def update(document: int, chunks: int, text_of: Callable[[int], str] = str) -> Update:
    """A document whose chunks are of the numbers that follow one another through a store."""
    identity = f"d{document:05}"
    records = []
    for index in range(chunks):
        number = document * chunks + index
        text, tokens = text_of(number), (number % 1000,) * 8
        chunk = Chunk(name_of(number), identity, index, text)
        key = isolated_key((number, *tokens), "s", "")
        encoded = EncodedChunk(chunk, tokens, tuple((0, len(text)) for _ in tokens))
        records.append(ChunkRecord(encoded, key))
    return Update(DocumentKey(identity), identity, tuple(records))


def name_of(number: int) -> str:
    """The id of its chunk."""
    return f"c{number:07}"


def make_store(
    path: Path,
    documents: int,
    embedding: Embedder,
    chunks: int = CHUNKS,
    text_of: Callable[[int], str] = str,
    index: GivenIndex | None = None,
) -> Store:
    """A store of so many documents of so many chunks each, put in as ingest does."""
    info = StoreInfo(FORMAT_VERSION, "s", "no model", embedding.name, 256, "float32")
    corpus = Store.create(path, info, embedding, index=index)
    for document in range(documents):
        with corpus.writing():
            corpus.changes.replace([update(document, chunks, text_of)])
    return corpus


def index_files(store: Path) -> list[Path]:
    """The files of a store's index, relative to the store."""
    found = (store / INDEX_DIRECTORY).rglob("*")
    return sorted(file.relative_to(store) for file in found if file.is_file())


def index_problems(store: Path) -> list[Problem]:
    return [problem for problem in find_damage(store) if problem.area == "index"]


def copies(store: Path, target: Path) -> Iterator[Path]:
    """One copy of a store after another, in the same place."""
    while True:
        shutil.rmtree(target, ignore_errors=True)
        yield shutil.copytree(store, target)


def wrong_searches(store: Path, numbers: Iterable[int], embedding: RandomEmbedding) -> int:
    """How many chunks aren't found first by their own text; all of them if it can't be opened."""
    try:
        corpus = Store.open(store, embedding)
        hits = {number: corpus.search(str(number), 3) for number in numbers}
    except StoreError:
        return len(list(numbers))
    corpus.close()
    return sum(
        not found or found[0].chunk.text != str(number) or abs(found[0].score - 1.0) > 1e-3
        for number, found in hits.items()
    )
