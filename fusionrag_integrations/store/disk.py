"""ChunkKV <-> files: the tensor side of the records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.records import RecordFiles, RecordHeader
from fusionrag_integrations.records.layout import DENSE
from fusionrag_integrations.store.compact import quantised
from fusionrag_integrations.store.stored import DTYPES, StoredKV
from fusionrag_integrations.types import ChunkKV, KVFormat

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_DENSE = {name: DTYPES[short] for name, short in DENSE.items()}


def format_of(dtype: torch.dtype) -> KVFormat:
    """The format that keeps KV of this dtype as it is."""
    formats: dict[torch.dtype, KVFormat] = {
        torch.float32: "float32",
        torch.float16: "float16",
        torch.bfloat16: "bfloat16",
    }
    return formats[dtype]


class FileKVStore:
    """KV records in a directory, all in one format. Safe for several threads and processes."""

    def __init__(self, directory: Path, signature: str, kv_format: KVFormat) -> None:
        """signature: of what the records are for, see `StoreInfo.record_signature`."""
        self.files = RecordFiles(directory, signature)
        self._format = kv_format

    def get(self, key: str) -> StoredKV:
        """The whole record, checked.

        Raises `KVMissingError`, `KVCorruptError`, `KVUnreadableError` or `KVForeignError`.
        """
        with self.files.open(key) as record:
            data = torch.empty(record.header.data_bytes, dtype=torch.uint8)
            record.read_all(data.numpy().data)
            return StoredKV(record.header, data)

    def put(self, record: ChunkKV) -> None:
        """Keep a record in the store's format, in the place of one that is there. All or nothing.

        Raises `InvalidInputError` for KV that the format can't hold, `StoreError` where the
        file can't be written.
        """
        header, half = self._header(record)
        kept = self._kept(record, half)
        self.files.write(header, [_bytes_of(kept[name]) for name in header.entries])

    def file_bytes(self, record: ChunkKV) -> int:
        """How many bytes the record's file has. Raises `InvalidInputError` as `put` does."""
        return self._header(record)[0].file_bytes

    def _header(self, record: ChunkKV) -> tuple[RecordHeader, torch.dtype]:
        """The record's header, without digests, and the dtype of first tokens."""
        if record.rotated:
            raise InvalidInputError(f"KV {record.key} is rotated; what is stored is unrotated.")
        if record.keys.numel() == 0:
            raise InvalidInputError(f"KV {record.key} is empty: {tuple(record.keys.shape)}.")
        dtype = record.keys.dtype
        if dtype not in _DENSE.values() or dtype != record.values.dtype:
            raise InvalidInputError(
                f"KV {record.key} has keys in {dtype} and values in {record.values.dtype}; both "
                f"must have the same one of {', '.join(_DENSE)}."
            )
        layers, heads, tokens, size = record.keys.shape
        half = torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
        header = RecordHeader(
            key=record.key,
            kind=record.kind,
            neighbours=record.neighbours,
            signature=self.files.signature,
            kv_format=self._format,
            shape=(layers, heads, tokens, size),
            half=_NAMES[half],
        )
        return header, half

    def contains(self, key: str) -> bool:
        """Whether there is a record under this key; it isn't read, so it may be damaged."""
        return self.files.contains(key)

    def delete(self, key: str) -> None:
        """Remove a record; nothing happens where there is none."""
        self.files.delete(key)

    def keys(self) -> Iterator[str]:
        """The keys of all records, ascending."""
        return self.files.keys()

    def by_age(self) -> list[tuple[str, int]]:
        """Keys of all records with their files' bytes, those written first before the others."""
        listed = sorted(self.files.listed(), key=lambda entry: entry[2])
        return [(key, nbytes) for key, nbytes, _ in listed]

    def size_bytes(self) -> int:
        """Bytes that all records take."""
        return self.files.size_bytes()

    def _kept(self, record: ChunkKV, half: torch.dtype) -> dict[str, torch.Tensor]:
        """The record's tensors by name, in the store's format."""
        tensors = {"token_ids": torch.tensor(record.token_ids, dtype=torch.int32)}
        if self._format in _DENSE:
            dtype = _DENSE[self._format]
            return tensors | {"keys": record.keys.to(dtype), "values": record.values.to(dtype)}
        return tensors | quantised(self._format, record.keys, record.values, half)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().flatten()
    return flat.view(torch.uint8).numpy().data
