"""KV records as bytes, without torch: one checksummed safetensors file per record, read by layers.

docs/kv_format.md describes the format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import xxhash

from fusionrag_integrations.errors import InvalidInputError, KVCorruptError, KVForeignError
from fusionrag_integrations.store.kv.base import KVFile, KVFileEntry, KVFiles
from fusionrag_integrations.store.kv.record_format import (
    MAX_HEADER_BYTES,
    MAX_RECORD_BYTES,
    RecordHeader,
    header_bytes,
    header_length,
    is_key,
    layer_digests,
    parse_header,
    with_digests,
)

FIRST_READ = 1 << 14  # bytes; holds the header of all but the deepest models


class RecordFiles:
    """Records in files. signature: the store's; a record with another one is foreign."""

    def __init__(self, files: KVFiles, signature: str) -> None:
        self.files = files
        self.signature = signature

    def write(self, header: RecordHeader, data: Sequence[memoryview]) -> int:
        """Write a record atomically, replacing an existing one. Returns the file's size in bytes.

        header: without digests. data: the bytes of its tensors, in order. Raises
        `InvalidInputError` for invalid keys and sizes, `StoreError` where writing fails.
        """
        for neighbour in header.neighbours:
            if not is_key(neighbour):
                raise InvalidInputError(f"Neighbour {neighbour!r} of KV {header.key} is no key.")
        content = memoryview(b"".join(data))
        if len(content) != header.data_bytes:
            raise InvalidInputError(
                f"KV {header.key} has {len(content)} bytes; its header says {header.data_bytes}."
            )
        head = header_bytes(with_digests(header, content))
        if len(head) > 8 + MAX_HEADER_BYTES:
            raise InvalidInputError(
                f"KV {header.key} has a header of {len(head)} bytes, more than {MAX_HEADER_BYTES}. "
                "Fuse it behind fewer neighbours."
            )
        if len(head) + len(content) > MAX_RECORD_BYTES:
            raise InvalidInputError(
                f"KV {header.key} has {len(head) + len(content)} bytes; at most {MAX_RECORD_BYTES} "
                "are read. Make a store with a smaller chunk_tokens."
            )
        self.files.write(header.key, [head, content])
        return len(head) + len(content)

    @contextmanager
    def open(self, key: str, known: RecordFile | None = None) -> Iterator[RecordFile]:
        """Open a record, checking its header and size.

        known: the same record, opened before; an unchanged header isn't parsed again. Raises
        `KVMissingError`, `KVCorruptError`, `KVUnreadableError` or `KVForeignError`, naming the
        file.
        """
        name = self.files.name_of(key)
        with self.files.open(key) as file:
            record = RecordFile(name, file, known)
            if record.header.key != key:
                raise KVForeignError(
                    f"{name} holds the record of another key, {record.header.key!r}."
                )
            if record.header.signature != self.signature:
                raise KVForeignError(
                    f"{name} was made by another model, format or salt: its signature is "
                    f"{record.header.signature!r}, not {self.signature!r}. Ingest its documents "
                    "again."
                )
            yield record

    def check(self, key: str) -> None:
        """Read all of a record, checking it. Raises as `open` does."""
        with self.open(key) as record:
            record.read_all(memoryview(bytearray(record.header.data_bytes)))

    def delete(self, key: str) -> None:
        """Delete a record; nothing happens where there is none. Raises `StoreError`."""
        self.files.delete(key)

    def keys(self) -> Iterator[str]:
        """The keys of all records, ascending."""
        return (entry.key for entry in self.entries())

    def existing(self, keys: Iterable[str]) -> set[str]:
        """Those of these keys that there are records of; they may be damaged."""
        return self.files.existing(keys)

    def entries(self) -> Iterator[KVFileEntry]:
        """The files of all records, by ascending key; they may be damaged."""
        return self.files.entries()

    def size_bytes(self) -> int:
        """The size of all records' files."""
        return sum(entry.nbytes for entry in self.entries())


class RecordFile:
    """An open record. Layers can be read one by one, each checked against its digest."""

    def __init__(self, name: str, file: KVFile, known: RecordFile | None = None) -> None:
        """Read the header. name: the file's, for messages. known: as in `RecordFiles.open`."""
        self._name = name
        self._file = file
        size = file.size
        head = self._bytes(FIRST_READ if size is None else min(size, FIRST_READ))
        if size is None and len(head) < FIRST_READ:
            size = len(head)
        length = header_length(head, MAX_RECORD_BYTES if size is None else size, name)
        if length > len(head):
            head = self._bytes(length)
        self._head = head[:length]
        self.header: RecordHeader
        if known is not None and known._head == self._head:
            self.header = known.header
        else:
            self.header = parse_header(self._head, name)
        self._entries = self.header.entries
        self._start = length
        wanted = length + self.header.data_bytes
        if size not in (None, wanted):
            raise KVCorruptError(
                f"{name} is damaged: it has {size} bytes, and should have {wanted}."
            )
        if wanted > MAX_RECORD_BYTES:
            raise KVCorruptError(f"{name} has {wanted} bytes; at most {MAX_RECORD_BYTES} are read.")

    def read_all(self, data: memoryview) -> None:
        """Read all tensors into `data`. Raises `KVCorruptError`."""
        self._fill(data, [slice(0, len(data))])
        self._check_tokens(data)
        self._check_layers(data, self.header.layers)

    def read_tokens(self, data: memoryview) -> None:
        """Read the token ids into their place in `data`. Raises `KVCorruptError`."""
        entry = self._entries["token_ids"]
        self._fill(data, [slice(entry.start, entry.stop)])
        self._check_tokens(data)

    def read_layers(self, data: memoryview, layers: range) -> None:
        """Read these layers into their places in `data`. Raises `KVCorruptError`."""
        tensors = (entry for name, entry in self._entries.items() if name != "token_ids")
        self._fill(data, [entry.of_layers(layers) for entry in tensors])
        self._check_layers(data, layers)

    def _check_tokens(self, data: memoryview) -> None:
        entry = self._entries["token_ids"]
        where = slice(entry.start, entry.stop)
        if xxhash.xxh3_64_hexdigest(data[where]) != self.header.digests[0]:
            raise self._damaged()

    def _check_layers(self, data: memoryview, layers: range) -> None:
        wanted = self.header.digests[1 + layers.start : 1 + layers.stop]
        if tuple(layer_digests(self._entries, layers, data)) != wanted:
            raise self._damaged()

    def _fill(self, data: memoryview, places: Sequence[slice]) -> None:
        parts = [(data[where], self._start + where.start) for where in places]
        if self._file.read(parts) < sum(len(buffer) for buffer, _ in parts):
            raise self._damaged()

    def _bytes(self, count: int) -> bytes:
        """The file's first bytes."""
        content = bytearray(count)
        return bytes(content[: self._file.read([(memoryview(content), 0)])])

    def _damaged(self) -> KVCorruptError:
        return KVCorruptError(f"{self._name} is damaged: its content doesn't match its digests.")
