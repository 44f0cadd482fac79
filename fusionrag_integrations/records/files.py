"""KV records as files: one checksummed safetensors file a record (docs/kv_format.md).

<directory>/ab/abcd....safetensors   the record with the key abcd...
<directory>/tmp/                     files being written, renamed into place when complete

A file is read into memory of the reader's own, never memory-mapped: truncating a mapped file kills
its reader. Knows nothing of torch.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

import xxhash

from fusionrag_integrations.durable import (
    open_descriptor,
    read_into,
    remove_file,
    sweep,
    write_file,
)
from fusionrag_integrations.errors import (
    InvalidInputError,
    KVCorruptError,
    KVForeignError,
    KVMissingError,
    KVRecordError,
    KVUnreadableError,
    StoreError,
)
from fusionrag_integrations.records.layout import (
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

SUFFIX = ".safetensors"
_FIRST_READ = 1 << 14  # bytes; holds the header of all but the deepest models
_NO_FILE = (errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)  # links, pipes, and so on
_SHARD = re.compile(r"[0-9a-f]{2}")


class RecordFiles:
    """Records in a directory, which is made with the first one.

    signature: of what the records are for; those of another are foreign.
    """

    def __init__(self, directory: Path, signature: str) -> None:
        self.directory = Path(directory).absolute()
        self.signature = signature
        self._drafts = self.directory / "tmp"
        sweep(self._drafts)

    def write(self, header: RecordHeader, data: Sequence[memoryview]) -> int:
        """Write a record in the place of one that is there; a reader sees the old or the new.

        header: without digests. data: the bytes of its tensors, in order. Returns how many bytes
        the file has. Raises `InvalidInputError` for keys that can't be, `StoreError` where the
        file can't be written.
        """
        path = self.path_of(header.key)
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
        try:
            write_file(path, [head, content], self._drafts)
        except OSError as error:
            raise StoreError(f"Can't write the KV record {path}: {error}") from error
        return len(head) + len(content)

    @contextmanager
    def open(self, key: str, known: RecordFile | None = None) -> Iterator[RecordFile]:
        """A record to read from; its header is checked, and that it is all there.

        known: the same record, opened before: where the header is still the same, it isn't parsed
        again. Raises `KVMissingError`, `KVCorruptError` or `KVForeignError`, naming the file.
        """
        path = self.path_of(key)
        with _named_errors(path):
            descriptor = open_descriptor(path)
        try:
            record = RecordFile(path, descriptor, known)
            self._check_ours(record.header, key, path)
            yield record
        finally:
            with suppress(OSError):  # what was read is read
                os.close(descriptor)

    def contains(self, key: str) -> bool:
        """Whether there is a file for this key; reading may still find it damaged."""
        path = self.path_of(key)
        with _listing(path):
            links = path.is_symlink() or path.parent.is_symlink()
            return path.is_file() and not links

    def delete(self, key: str) -> None:
        """Remove a record; nothing happens where there is none."""
        path = self.path_of(key)
        try:
            remove_file(path)
        except OSError as error:
            raise StoreError(f"Can't delete the KV record {path}: {error}") from error

    def keys(self) -> Iterator[str]:
        """The keys of all records, ascending."""
        return (key for key, _, _ in self.listed())

    def size_bytes(self) -> int:
        """Bytes that all records take."""
        return sum(nbytes for _, nbytes, _ in self.listed())

    def listed(self) -> Iterator[tuple[str, int, float]]:
        """Key, bytes and time of all records' files, by key ascending; others are passed over."""
        for path in self.paths():
            if self.is_record(path):
                with _listing(path), suppress(FileNotFoundError):  # deleted since it was listed
                    facts = path.lstat()
                    if S_ISREG(facts.st_mode):
                        yield path.name.removesuffix(SUFFIX), facts.st_size, facts.st_mtime

    def paths(self) -> list[Path]:
        """Everything in the directory that is, or should be, a record; ascending."""
        found: list[Path] = []
        with _listing(self.directory):
            if not self.directory.is_dir():
                return []
            for entry in self.directory.iterdir():
                if entry.is_dir() and not entry.is_symlink() and _SHARD.fullmatch(entry.name):
                    found.extend(entry.iterdir())
                elif entry != self._drafts:
                    found.append(entry)
        return sorted(found)

    def check(self, path: Path) -> None:
        """Read one of `paths()`. Raises as `open` does, and `KVForeignError` for a wrong name."""
        if not self.is_record(path):
            raise KVForeignError(
                f"{path} isn't named like a KV record, which is ab/abcd...{SUFFIX}"
            )
        with self.open(path.name.removesuffix(SUFFIX)) as record:
            record.read_all(memoryview(bytearray(record.header.data_bytes)))

    def sweep(self) -> list[Path]:
        """Remove what writers have left that died, however short ago; nobody may be writing."""
        return sweep(self._drafts, 0.0)

    def path_of(self, key: str) -> Path:
        """Where a record's file lies. Raises `InvalidInputError` for what is no key."""
        if not is_key(key):
            raise InvalidInputError(f"{key!r} is no key of a KV record; keys are lower-case hex.")
        return self.directory / key[:2] / f"{key}{SUFFIX}"

    def is_record(self, path: Path) -> bool:
        """Whether a file has a record's name and place, whatever it holds."""
        key = path.name.removesuffix(SUFFIX)
        return is_key(key) and path == self.path_of(key)

    def _check_ours(self, header: RecordHeader, key: str, path: Path) -> None:
        if header.key != key:
            raise KVForeignError(f"{path} holds the record of another key, {header.key!r}.")
        if header.signature != self.signature:
            raise KVForeignError(
                f"{path} was made by another model, format or salt: its signature is "
                f"{header.signature!r}, not {self.signature!r}. Ingest its documents again."
            )


class RecordFile:
    """An open record. Reads by layers, each checked against its digest."""

    def __init__(self, path: Path, descriptor: int, known: RecordFile | None = None) -> None:
        """Read the header. known, and what is raised: as in `RecordFiles.open`."""
        self._path = path
        self._descriptor = descriptor
        with _named_errors(path):
            size = os.fstat(descriptor).st_size
        head = self._bytes(0, min(size, _FIRST_READ))
        length = header_length(head, size, path)
        if length > len(head):
            head = self._bytes(0, length)
        self._head = head[:length]
        self.header: RecordHeader
        if known is not None and known._head == self._head:
            self.header = known.header
        else:
            self.header = parse_header(self._head, path)
        self._entries = self.header.entries
        self._start = length
        wanted = length + self.header.data_bytes
        if size != wanted:
            raise KVCorruptError(
                f"{path} is damaged: it has {size} bytes, and should have {wanted}."
            )
        if size > MAX_RECORD_BYTES:
            raise KVCorruptError(f"{path} has {size} bytes; at most {MAX_RECORD_BYTES} are read.")

    def read_all(self, data: memoryview) -> None:
        """Fill `data` with all bytes of the tensors. Raises `KVCorruptError`."""
        self.read_tokens(data)
        first = self._entries["token_ids"].stop
        self._fill(data, slice(first, len(data)))
        self._check_layers(data, self.header.layers)

    def read_tokens(self, data: memoryview) -> None:
        """Fill the token ids' place in `data`. Raises `KVCorruptError`."""
        entry = self._entries["token_ids"]
        where = slice(entry.start, entry.stop)
        self._fill(data, where)
        if xxhash.xxh3_64_hexdigest(data[where]) != self.header.digests[0]:
            raise self._damaged()

    def read_layers(self, data: memoryview, layers: range) -> None:
        """Fill these layers' places in `data`. Raises `KVCorruptError`."""
        for name, entry in self._entries.items():
            if name != "token_ids":
                self._fill(data, entry.of_layers(layers))
        self._check_layers(data, layers)

    def _check_layers(self, data: memoryview, layers: range) -> None:
        wanted = self.header.digests[1 + layers.start : 1 + layers.stop]
        if tuple(layer_digests(self._entries, layers, data)) != wanted:
            raise self._damaged()

    def _fill(self, data: memoryview, where: slice) -> None:
        part = data[where]
        if self._read_into(part, self._start + where.start) < len(part):
            raise self._damaged()

    def _bytes(self, offset: int, count: int) -> bytes:
        content = bytearray(count)
        return bytes(content[: self._read_into(memoryview(content), offset)])

    def _read_into(self, part: memoryview, offset: int) -> int:
        with _named_errors(self._path):
            return read_into(self._descriptor, part, offset)

    def _damaged(self) -> KVCorruptError:
        return KVCorruptError(f"{self._path} is damaged: its content doesn't match its digests.")


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """What the disk says, as a record's error that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise KVMissingError(f"There is no KV record {path}.") from error
    except OSError as error:
        if error.errno in _NO_FILE:
            raise KVCorruptError(f"{path} is damaged: it isn't a regular file.") from error
        raise KVUnreadableError(f"{path} can't be read: {error}") from error


@contextmanager
def _listing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} can't be listed: {error}") from error


@dataclass(frozen=True, slots=True)
class RecordProblem:
    """A file that isn't a usable record, and why."""

    path: Path
    error: KVRecordError


def verify(
    files: RecordFiles, progress: Callable[[int, int], object] = lambda done, total: None
) -> Iterator[RecordProblem]:
    """Read every record and yield the bad ones; progress: called with files done and in all."""
    paths = files.paths()
    for done, path in enumerate(paths, start=1):
        try:
            files.check(path)
        except KVMissingError:
            pass  # deleted since it was listed
        except KVRecordError as error:
            yield RecordProblem(path, error)
        progress(done, len(paths))
