"""The store's ports in memory: what outlives a store as a directory would, without files."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Any

import numpy as np

from fusionrag_integrations.documents.types import Chunk
from fusionrag_integrations.errors import InvalidInputError, KVMissingError, StoreClosedError
from fusionrag_integrations.store.kv.base import KVFile, KVFileEntry, Part
from fusionrag_integrations.store.kv.record_format import is_key
from fusionrag_integrations.store.vector_index.vectors import (
    check_k,
    embedding_mismatch,
    unit_rows,
)

PLACE = Path("memory")

Predicate = Callable[[Mapping[str, Any]], bool]


class MemoryVectorIndex:
    """A `VectorIndex` that compares every vector."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[Chunk, np.ndarray]] = {}
        self._length: int | None = None
        self._closed = False

    def ids(self, among: Sequence[str] | None = None) -> set[str]:
        self.refresh()
        return set(self._rows) if among is None else self._rows.keys() & set(among)

    def holds(self, count: int) -> bool:
        return len(self.ids()) >= count

    def add(self, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]) -> None:
        self.refresh()
        if len({chunk.id for chunk in chunks}) != len(vectors) or len(chunks) != len(vectors):
            raise InvalidInputError("Give each chunk once, with one vector.")
        for vector in vectors:
            self._check(vector, self._length or len(vectors[0]))
        self._length = self._length or (len(vectors[0]) if vectors else None)
        for chunk, vector in zip(chunks, vectors, strict=True):
            self._rows[chunk.id] = chunk, unit_rows([vector])[0]

    def remove(self, chunk_ids: Iterable[str]) -> None:
        self.refresh()
        for chunk_id in chunk_ids:
            self._rows.pop(chunk_id, None)

    def search(
        self,
        vector: Sequence[float],
        k: int,
        scopes: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[tuple[str, float]]:
        check_k(k)
        self.refresh()
        self._check(vector, self._length or len(vector))
        found = self.matching(where) if where else self.ids()
        question = unit_rows([vector])[0]
        hits = [
            (chunk_id, float((row * question).sum()))
            for chunk_id, (chunk, row) in self._rows.items()
            if chunk_id in found and (scopes is None or chunk.scope in scopes)
        ]
        return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k]

    def search_many(
        self, vectors: Sequence[Sequence[float]], k: int, scopes: Sequence[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        return [self.search(vector, k, scopes) for vector in vectors]

    def matching(self, where: Mapping[str, Any]) -> set[str]:
        self.refresh()
        holds = _predicate(where)
        return {
            chunk.id
            for chunk, _ in self._rows.values()
            if holds({"document_id": chunk.document_id, "title": chunk.title, **chunk.metadata})
        }

    def refresh(self) -> None:
        if self._closed:
            raise StoreClosedError.of(PLACE)

    def close(self) -> None:
        self._closed = True

    def _check(self, vector: Sequence[float], length: int) -> None:
        if len(vector) != length:
            raise embedding_mismatch(PLACE, f"dimension of {length}, got {len(vector)}")


def _predicate(where: Mapping[str, Any]) -> Predicate:
    if not isinstance(where, Mapping) or not where:
        raise InvalidInputError(f"The filter {where!r} can't be used.")
    parts = [_condition(key, condition) for key, condition in where.items()]
    return lambda metadata: all(part(metadata) for part in parts)


def _condition(key: str, condition: Any) -> Predicate:
    if key in ("$and", "$or"):
        parts = [_predicate(part) for part in condition]
        join = all if key == "$and" else any
        return lambda metadata: join(part(metadata) for part in parts)
    if not isinstance(condition, Mapping):
        condition = {"$eq": condition}
    ((name, operand),) = condition.items()
    if name not in _OPERATORS or operand is None:
        raise InvalidInputError(f"The filter {key!r}: {condition!r} can't be used.")
    return lambda metadata: _OPERATORS[name](metadata.get(key), operand)


def _equal(value: Any, operand: Any) -> bool:
    return value == operand and isinstance(value, bool) == isinstance(operand, bool)


def _among(value: Any, operand: Any) -> bool:
    return any(_equal(value, each) for each in operand)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda value, operand: isinstance(value, int | float) and compare(value, operand)


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": _equal,
    "$ne": lambda value, operand: not _equal(value, operand),
    "$in": _among,
    "$nin": lambda value, operand: not _among(value, operand),
    "$gt": _ordered(operator.gt),
    "$gte": _ordered(operator.ge),
    "$lt": _ordered(operator.lt),
    "$lte": _ordered(operator.le),
}


class MemoryKVFiles:
    """`KVFiles` in a dictionary, for the threads of one process."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[bytes, float]] = {}

    def name_of(self, key: str) -> str:
        if not is_key(key):
            raise InvalidInputError(f"{key!r} is no key of a KV record.")
        return f"memory:{key}"

    @contextmanager
    def open(self, key: str) -> Iterator[KVFile]:
        name = self.name_of(key)
        if key not in self._files:
            raise KVMissingError(f"There is no KV record {name}.")
        yield _OpenFile(self._files[key][0])

    def write(self, key: str, parts: Sequence[bytes | memoryview]) -> None:
        self.name_of(key)
        self._files[key] = b"".join(parts), time()

    def delete(self, key: str) -> None:
        self.name_of(key)
        self._files.pop(key, None)

    def existing(self, keys: Iterable[str]) -> set[str]:
        return {key for key in keys if self.name_of(key) and key in self._files}

    def entries(self) -> Iterator[KVFileEntry]:
        for key, (content, modified) in sorted(self._files.items()):
            yield KVFileEntry(key, len(content), modified)


class _OpenFile:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, parts: Sequence[Part]) -> int:
        total = 0
        for buffer, offset in parts:
            found = self._content[offset : offset + len(buffer)]
            buffer[: len(found)] = found
            total += len(found)
        return total
