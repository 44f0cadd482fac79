"""Records between tensors and files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.store.kv.base import KVFiles
from fusionrag_integrations.store.kv.kv_record import DTYPES, KVRecord
from fusionrag_integrations.store.kv.quantisation import quantised
from fusionrag_integrations.store.kv.record_files import RecordFiles
from fusionrag_integrations.store.kv.record_format import DENSE, RecordHeader
from fusionrag_integrations.store.kv.types import ChunkKV, KVFormat

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_DENSE = {name: DTYPES[short] for name, short in DENSE.items()}


def format_of(dtype: torch.dtype) -> KVFormat:
    """The format that stores KV of this dtype unchanged."""
    formats: dict[torch.dtype, KVFormat] = {
        torch.float32: "float32",
        torch.float16: "float16",
        torch.bfloat16: "bfloat16",
    }
    return formats[dtype]


class RecordStore:
    """KV records in files, all in one format. Safe for several threads and processes."""

    def __init__(self, files: KVFiles, signature: str, kv_format: KVFormat) -> None:
        """signature: the store's, `StoreInfo.record_signature`."""
        self.files = RecordFiles(files, signature)
        self._format = kv_format

    def get(self, key: str) -> KVRecord:
        """The whole record, checked.

        Raises `KVMissingError`, `KVCorruptError`, `KVUnreadableError` or `KVForeignError`.
        """
        with self.files.open(key) as record:
            data = torch.empty(record.header.data_bytes, dtype=torch.uint8)
            record.read_all(data.numpy().data)
            return KVRecord(record.header, data)

    def put(self, record: ChunkKV) -> None:
        """Write a record atomically in the store's format, replacing an existing one.

        Raises `InvalidInputError` for KV that the format can't hold, `StoreError` where the
        file can't be written.
        """
        header, half = self._header(record)
        tensors = self._tensors(record, half)
        self.files.write(header, [_bytes_of(tensors[name]) for name in header.entries])

    def copy(self, record: KVRecord) -> None:
        """Write a record as it was read elsewhere. Raises `StoreError`."""
        self.files.write(record.header, [record.data])

    def file_bytes(self, record: ChunkKV) -> int:
        """The size of the record's file. Raises `InvalidInputError` as `put` does."""
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

    def delete(self, key: str) -> None:
        """Delete a record; nothing happens where there is none."""
        self.files.delete(key)

    def existing(self, keys: Iterable[str]) -> set[str]:
        """Those of these keys that there are records of; they may be damaged."""
        return self.files.existing(keys)

    def keys(self) -> Iterator[str]:
        """The keys of all records, ascending."""
        return self.files.keys()

    def by_age(self) -> list[tuple[str, int]]:
        """Keys of all records with their files' sizes, the oldest first."""
        listed = sorted(self.files.entries(), key=lambda entry: entry.modified)
        return [(entry.key, entry.nbytes) for entry in listed]

    def size_bytes(self) -> int:
        """The size of all records' files."""
        return self.files.size_bytes()

    def _tensors(self, record: ChunkKV, half: torch.dtype) -> dict[str, torch.Tensor]:
        """The record's tensors by name, in the store's format. half: the dtype of first tokens."""
        tensors = {"token_ids": torch.tensor(record.token_ids, dtype=torch.int32)}
        if self._format in _DENSE:
            dtype = _DENSE[self._format]
            return tensors | {"keys": record.keys.to(dtype), "values": record.values.to(dtype)}
        return tensors | quantised(self._format, record.keys, record.values, half)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().flatten()
    return flat.view(torch.uint8).numpy().data
